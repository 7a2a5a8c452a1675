"""What is compared: curvature, masks, rankings, updates."""
