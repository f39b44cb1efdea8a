"""From latents and neighbours to a push: feature maps, presets, schedule, and the three modes. Pure torch."""
