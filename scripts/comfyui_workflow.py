"""The workflow of docs/comfyui.md: its JSON, which ComfyUI opens, and a picture of it.

    python scripts/comfyui_workflow.py docs

Writes comfyui_workflow.json and comfyui_workflow.png into the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from fastsample.interop.comfyui import NODE_DISPLAY_NAME_MAPPINGS

PROMPT, NEGATIVE = "a lighthouse on a cliff at dusk, oil painting", "blurry, low quality"
# name: type, column, row, inputs (name: (node, output)), outputs, widgets
NODES: dict[str, tuple[str, float, float, dict[str, tuple[str, int]], list[str], list[Any]]] = {
    "model": ("CheckpointLoaderSimple", 0, 1.3, {}, ["MODEL", "CLIP", "VAE"], ["model.safetensors"]),
    "positive": ("CLIPTextEncode", 1, 0, {"clip": ("model", 1)}, ["CONDITIONING"], [PROMPT]),
    "negative": ("CLIPTextEncode", 1, 1.1, {"clip": ("model", 1)}, ["CONDITIONING"], [NEGATIVE]),
    "sampler": ("FastsampleSampler", 1, 2.2, {}, ["SAMPLER"], ["hb-dpmpp-2m", "auto", 1.0, ""]),
    "sigmas": ("FastsampleGridSigmas", 1, 3.7, {"model": ("model", 0)}, ["SIGMAS"], ["quadratic", 12, 1.0, ""]),
    "latent": ("EmptyLatentImage", 1, 5.2, {}, ["LATENT"], [512, 512, 1]),
    "sample": (
        "SamplerCustom",
        2,
        1.3,
        {
            "model": ("model", 0),
            "positive": ("positive", 0),
            "negative": ("negative", 0),
            "sampler": ("sampler", 0),
            "sigmas": ("sigmas", 0),
            "latent_image": ("latent", 0),
        },
        ["LATENT", "LATENT"],
        [True, 0, "fixed", 7.5],
    ),
    "decode": ("VAEDecode", 3, 1.3, {"samples": ("sample", 0), "vae": ("model", 2)}, ["IMAGE"], []),
    "save": ("SaveImage", 4, 1.3, {"images": ("decode", 0)}, [], ["fastsample"]),
}
WIDTH, ROW, COLUMN = 380, 160, 460


def workflow() -> dict[str, Any]:
    """What ComfyUI saves: nodes with their sockets, and links between them."""
    numbers = {name: number for number, name in enumerate(NODES, start=1)}
    nodes, links = [], []
    for name, (kind, column, row, inputs, outputs, widgets) in NODES.items():
        sockets = []
        for place, (label, (source, out)) in enumerate(inputs.items()):
            of = NODES[source][4][out]
            links.append([len(links) + 1, numbers[source], out, numbers[name], place, of])
            sockets.append({"name": label, "type": of, "link": len(links)})
        nodes.append(
            {
                "id": numbers[name],
                "type": kind,
                "pos": [40 + COLUMN * column, 40 + ROW * row],
                "size": [WIDTH, height(name)],
                "flags": {},
                "order": numbers[name] - 1,
                "mode": 0,
                "inputs": sockets,
                "outputs": [{"name": own, "type": own, "links": []} for own in outputs],
                "properties": {"Node name for S&R": kind},
                "widgets_values": widgets,
            }
        )
    for number, source, out, *_ in links:
        nodes[source - 1]["outputs"][out]["links"].append(number)
    last = {"last_node_id": len(nodes), "last_link_id": len(links)}
    return {**last, "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def height(name: str) -> int:
    """Of a node's box."""
    _, _, _, inputs, outputs, widgets = NODES[name]
    return 40 + 22 * (max(len(inputs), len(outputs)) + len(widgets))


def shortened(text: str) -> str:
    """As much of a widget's text as its box has room for."""
    return text if len(text) <= 34 else f"{text[:32]}.."


def draw(made: dict[str, Any], path: Path) -> None:
    """The nodes as boxes, ours in colour, and the links between their sockets."""
    figure, axes = plt.subplots(figsize=(11.2, 5.8), dpi=160)
    places = {node["id"]: node for node in made["nodes"]}

    def socket(number: int, place: int, out: bool) -> tuple[float, float]:
        left, top = places[number]["pos"]
        return left + WIDTH * out, top + 44 + 22 * place

    for _, source, out, target, into, _ in made["links"]:
        (x, y), (u, v) = socket(source, out, True), socket(target, into, False)
        reach = max(60.0, abs(u - x) / 2)
        t = [step / 40 for step in range(41)]
        curve = [
            (
                (1 - s) ** 3 * x + 3 * (1 - s) ** 2 * s * (x + reach) + 3 * (1 - s) * s**2 * (u - reach) + s**3 * u,
                (1 - s) ** 3 * y + 3 * (1 - s) ** 2 * s * y + 3 * (1 - s) * s**2 * v + s**3 * v,
            )
            for s in t
        ]
        axes.plot(*zip(*curve, strict=True), color="#8a8f98", lw=1.4, zorder=1)
    for node in made["nodes"]:
        left, top = node["pos"]
        ours = node["type"] in NODE_DISPLAY_NAME_MAPPINGS
        face, edge = ("#dcebfa", "#2f6fb3") if ours else ("#f3f4f6", "#9aa0a8")
        box = FancyBboxPatch(
            (left, top), WIDTH, node["size"][1], boxstyle="round,pad=0,rounding_size=8", fc=face, ec=edge
        )
        axes.add_patch(box)
        title = NODE_DISPLAY_NAME_MAPPINGS.get(node["type"], node["type"])
        axes.text(left + 10, top + 17, title, fontsize=6.0, weight="bold", va="center")
        for side, sockets in ((False, node["inputs"]), (True, node["outputs"])):
            for place, one in enumerate(sockets):
                x, y = socket(node["id"], place, side)
                axes.plot([x], [y], "o", ms=5, color=edge, zorder=3)
                axes.text(
                    x + (-9 if side else 9), y, one["name"], fontsize=6.5, ha="right" if side else "left", va="center"
                )
        below = top + 44 + 22 * max(len(node["inputs"]), len(node["outputs"]))
        for place, value in enumerate(node["widgets_values"]):
            axes.text(
                left + 14,
                below + 22 * place,
                shortened(str(value)) or "(options)",
                fontsize=6.5,
                va="center",
                color="#444",
            )
    axes.set_xlim(30, 30 + 5 * COLUMN)
    axes.set_ylim(40 + ROW * 6.4, 10)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    made = workflow()
    (folder / "comfyui_workflow.json").write_text(json.dumps(made, indent=1) + "\n")
    draw(made, folder / "comfyui_workflow.png")


if __name__ == "__main__":
    main()
