"""channels_first models computed with the channels last."""
