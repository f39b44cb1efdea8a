"""From latents and neighbours to a push: feature maps, presets, schedule, and the two modes. Pure torch."""
