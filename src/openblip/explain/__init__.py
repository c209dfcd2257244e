"""Where a model looks: Grad-CAM over cross-attention, drawn as heat maps, and measured where the truth is known."""
