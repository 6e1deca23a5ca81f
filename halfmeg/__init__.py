"""Train, compare and ship image classifiers of fewer than 500,000 parameters."""

__version__ = "0.1.0"
