"""The mathematics of SPARKE (arXiv 2506.10173): kernels, diversity scores, closed-form gradients. Pure torch."""
