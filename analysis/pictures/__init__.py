"""Pictures of what a checkpoint has learned: matches, feature maps in colours, segmentations beside the truth.

Read first: __main__.py (the command), network.py (a run's network and images). A new picture is a file that ends in a
`draw_...` function, and its line in __main__.py.
"""
