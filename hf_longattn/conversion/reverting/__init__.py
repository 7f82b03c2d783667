"""From a long checkpoint back to a plain one of its base: plan → write → verify."""
