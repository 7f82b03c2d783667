"""Long models of other architectures (Longformer, BigBird …), converted into our families with equal outputs: one file each."""
