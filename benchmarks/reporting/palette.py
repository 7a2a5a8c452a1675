"""The colour of every method, the same in all pictures."""

# Okabe and Ito's palette, which is told apart by colour-blind readers too.
COLOURS = {
    "full": "#0072B2",
    "last_layer": "#CC79A7",
    "random": "#7F8C99",
    "random_like_sharpest": "#E69F00",
    "sharpest": "#D55E00",
    "flattest": "#56B4E9",
    "saliency": "#009E73",
}
