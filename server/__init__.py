"""HTTP and the command line. This package knows no tensor and does not import torch."""
