"""Many neurons through explainer, simulator and scorer."""
