"""Updates that change the selected entries alone, and patches to ship them."""
