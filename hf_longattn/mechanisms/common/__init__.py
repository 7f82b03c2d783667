"""What mechanisms share: their base class, options, registry, notation for members, and building blocks."""
