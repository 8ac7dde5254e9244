"""Looking inside a model: reading its sites, attributing its logits, changing them to see why."""
