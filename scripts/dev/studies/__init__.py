"""The project's own studies, run from a checkout: what long inputs are worth to published models, and the demo."""
