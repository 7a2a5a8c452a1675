"""Tangents pushed forward and cotangents pulled backward through the graph."""
