"""How the panel Paint masks looks: javascript/mask_brush.js finds its parts by data-part, and what buttons do by data-do."""

from ti_trainer.ui.render import notice

WELCOME = (
    "Choose a folder, and paint over what shall count: the word learns that, and less of the rest. "
    "An image without a mask counts all over."
)
HINT = (
    "On the image: the right mouse button, or a pen’s other end, erases; ← → other image; [ ] size; Ctrl+Z, Ctrl+Y. "
    "What is not saved stays here while the page is open."
)


def _slider(part: str, label: str, least: float, most: float, step: float, value: float, below: str = "") -> str:
    bounds = f'min="{least:g}" max="{most:g}" step="{step:g}" value="{value:g}"'
    return (
        f'<label class="ti-masks-slider"><span>{label} <output data-part="{part}-said"></output></span>'
        f'<input type="range" data-part="{part}" id="ti_trainer_masks_{part}" {bounds}>{below}</label>'
    )


def _button(do: str, label: str, title: str = "", more: str = "") -> str:
    hint = f' title="{title}"' if title else ""
    return f'<button type="button" class="ti-tool" data-do="{do}"{hint}{more}>{label}</button>'


WEIGHTS = (
    '<span class="ti-masks-weights" data-part="weights" data-most="5">'
    "<span><i>0</i><i>1</i><i>5</i></span><span><i>0</i><i>1</i></span>"
    "<small>This mask is one of OneTrainer’s (-masklabel): its weights end at 1.</small></span>"
)
TOOLS = "".join(
    [
        '<div class="ti-masks-two" role="group" aria-label="Tool">',
        _button("brush", "Brush", more=' aria-pressed="true"'),
        _button("eraser", "Eraser", more=' aria-pressed="false"'),
        "</div>",
        _slider("weight", "Brush weight", 0, 5, 0.1, 1, WEIGHTS),
        _slider("size", "Brush size", 0.5, 60, 0.5, 10),
        _slider("soft", "Soft edge", 0, 100, 5, 0),
        _slider("colours", "Show colours", 0, 100, 5, 60),
        '<div class="ti-masks-two">',
        _button("undo", "Undo"),
        _button("redo", "Redo"),
        '</div><div class="ti-masks-two ti-masks-three">',
        _button("fill", "Fill all", "Everything counts with the brush’s weight"),
        _button("clear", "Clear", "Nothing counts: to begin anew"),
        _button("invert", "Invert", "What counts does not, and what does not counts 1"),
        "</div>",
        _button(
            "spread",
            "Spread by VAE attention",
            "Paint a part of the thing: the model’s VAE finds what looks like it. An undo takes it back.",
        ),
        '<div class="ti-masks-two">',
        _button("save", "Save", "Writes the mask beside its image", ' data-kind="primary"'),
        _button("delete", "Delete mask", "The file is kept in the sub-folder “left out”"),
        "</div>",
        '<label class="ti-masks-tick"><input type="checkbox" data-part="on" id="ti_trainer_masks_on">',
        "Go on after saving</label>",
    ]
)

PAGER = _button("previous", "◀ Previous") + '<span data-part="place"></span>' + _button("next", "Next ▶")
CANVAS = f"""<div class="ti-masks">
<div data-part="said">{notice("info", WELCOME)}</div>
<div class="ti-masks-room" data-part="room" hidden>
<div class="ti-subdued ti-masks-hint" data-part="folder" style="overflow-wrap: anywhere"></div>
<div class="ti-masks-strip" data-part="strip"></div>
<div class="ti-masks-desk">
<div class="ti-masks-left">
<div class="ti-masks-pager">{PAGER}</div>
<div class="ti-masks-sheet" data-part="sheet">
<img data-part="image" alt="" draggable="false">
<canvas data-part="canvas" id="ti_trainer_masks_canvas" tabindex="0" aria-label="The image, to paint its mask on"></canvas>
<i data-part="ring" hidden></i>
</div>
<div class="ti-subdued ti-masks-hint">{HINT}</div>
</div>
<fieldset class="ti-masks-tools" data-part="tools">{TOOLS}</fieldset>
</div></div></div>"""
