"""Tables and pictures that several reports share."""
