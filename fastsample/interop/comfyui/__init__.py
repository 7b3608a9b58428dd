"""A pack of nodes for ComfyUI: link this folder into `custom_nodes`. Where that loads it, its name is another."""

from fastsample.interop.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
