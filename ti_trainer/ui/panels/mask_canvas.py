"""The HTML of the Paint masks panel. javascript/mask_brush.js finds its parts by data-part, and its buttons by data-do."""

from ti_trainer.ui.render import notice

WELCOME = (
    "Open a folder, and paint over what the embedding should learn; the rest then contributes less to the loss. "
    "Without a mask, the whole image contributes equally."
)
HINT = (
    "On the image: the right mouse button or a pen’s eraser erases; ← → previous and next image; [ ] brush size; "
    "Ctrl+Z, Ctrl+Y undo and redo. Unsaved masks are kept while the page is open."
)


def _slider(part: str, label: str, low: float, high: float, step: float, value: float, below: str = "") -> str:
    bounds = f'min="{low:g}" max="{high:g}" step="{step:g}" value="{value:g}"'
    return (
        f'<label class="ti-masks-slider"><span>{label} <output data-part="{part}-value"></output></span>'
        f'<input type="range" data-part="{part}" id="ti_trainer_masks_{part}" {bounds}>{below}</label>'
    )


def _button(do: str, label: str, title: str = "", more: str = "") -> str:
    hint = f' title="{title}"' if title else ""
    return f'<button type="button" class="ti-tool" data-do="{do}"{hint}{more}>{label}</button>'


WEIGHTS = (
    '<span class="ti-masks-weights" data-part="weights" data-max="5">'
    "<span><i>0</i><i>1</i><i>5</i></span><span><i>0</i><i>1</i></span>"
    "<small>OneTrainer masks (-masklabel) have weights up to 1.</small></span>"
)
TOOLS = "".join(
    [
        '<div class="ti-masks-two" role="group" aria-label="Tool">',
        _button("brush", "Brush", more=' aria-pressed="true"'),
        _button("eraser", "Eraser", more=' aria-pressed="false"'),
        "</div>",
        _slider("weight", "Brush weight", 0, 5, 0.1, 1, WEIGHTS),
        _slider("size", "Brush size", 0.5, 60, 0.5, 10),
        _slider("soft", "Softness", 0, 100, 5, 0),
        _slider("opacity", "Mask opacity", 0, 100, 5, 60),
        '<div class="ti-masks-two">',
        _button("undo", "Undo"),
        _button("redo", "Redo"),
        '</div><div class="ti-masks-two ti-masks-three">',
        _button("fill", "Fill all", "Set the whole mask to the brush weight"),
        _button("clear", "Clear", "Set the whole mask to 0"),
        _button("invert", "Invert", "Swap painted and unpainted areas"),
        "</div>",
        _button(
            "spread",
            "Spread by VAE attention",
            "Paint a part of the object: the model’s VAE extends the mask to areas that look like it.",
        ),
        '<div class="ti-masks-two">',
        _button("save", "Save", "Write the mask next to its image", ' data-kind="primary"'),
        _button("delete", "Delete mask", "The file is moved to the subfolder “left out”"),
        "</div>",
        '<label class="ti-masks-tick"><input type="checkbox" data-part="advance" id="ti_trainer_masks_advance">',
        "Next image after saving</label>",
    ]
)

PAGER = _button("previous", "◀ Previous") + '<span data-part="place"></span>' + _button("next", "Next ▶")
CANVAS = f"""<div class="ti-masks">
<div data-part="message">{notice("info", WELCOME)}</div>
<div class="ti-masks-workspace" data-part="workspace" hidden>
<div class="ti-subdued ti-masks-hint" data-part="folder" style="overflow-wrap: anywhere"></div>
<div class="ti-masks-strip" data-part="strip"></div>
<div class="ti-masks-main">
<div class="ti-masks-left">
<div class="ti-masks-pager">{PAGER}</div>
<div class="ti-masks-image" data-part="image-area">
<img data-part="image" alt="" draggable="false">
<canvas data-part="canvas" id="ti_trainer_masks_canvas" tabindex="0" aria-label="Paint the mask on this image"></canvas>
<i data-part="ring" hidden></i>
</div>
<div class="ti-subdued ti-masks-hint">{HINT}</div>
</div>
<fieldset class="ti-masks-tools" data-part="tools">{TOOLS}</fieldset>
</div></div></div>"""
