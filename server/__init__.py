"""HTTP and the command line. Knows no tensor and does not import torch."""
