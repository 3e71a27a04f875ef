"""What the caption editor does: handlers that take one visitor's state and inputs, and return updates by component name.

They are independent of the layout: `caption_editor` maps the names to components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gradio as gr

from ti_trainer.data.caption_edits import BACKUP, Captions, difference, load
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.caption_view import ALL, ONE, PAGE_SIZE, EditorState, Inputs, Updates, view
from ti_trainer.ui.render import notice, refusal
from ti_trainer.wording import counted

LOAD = {"Load": "press:ti_trainer_captions_load"}  # a way out, for `ways_out`
Edit = Callable[[Captions, Sequence[Path], Inputs], Captions]  # of the captions of these images
Action = Callable[[EditorState, Inputs], tuple[EditorState, str]]  # the new state and a message


def edit(change: Edit, before: EditorState, inputs: Inputs) -> Updates:
    """Change the captions of the target images; the message goes below the buttons for many captions."""

    def act(state: EditorState, inputs: Inputs) -> tuple[EditorState, str]:
        captions = loaded(state)
        new = change(captions, target_images(state, inputs), inputs)
        return replace(state, captions=new), _changes(captions, new)

    updates = run(act, before, inputs)
    return {**updates, "message": "", "edit_message": updates["message"]}


def run(act: Action, before: EditorState, inputs: Inputs) -> Updates:
    """Run an action, and update the view and the filters' choices; shows why if it is refused."""
    state = _with_typed_caption(before, inputs)
    try:
        new, message = act(state, inputs)
    except (TITrainerError, OSError) as error:
        new, message = state, refusal(error, None if state.captions else LOAD)
    new = _filtered(new, inputs, keep_page=True)
    tags = [tag for tag, _ in new.captions.counts()] if new.captions else []
    filters = {name: list(getattr(inputs, name) or []) for name in ("all_of", "none_of")}
    lists = {
        name: gr.update(choices=list(dict.fromkeys([*tags, *chosen])), value=chosen) for name, chosen in filters.items()
    }
    return {**view(new, before, inputs, message), **lists}


def select(state: EditorState, inputs: Inputs, index: int) -> Updates:
    """Select the image at this position of the gallery."""
    number = state.page * PAGE_SIZE + index
    image = state.shown[number] if number < len(state.shown) else None
    return view(replace(_with_typed_caption(state, inputs), selected=image), state, inputs)


def step(by: int, pages: bool, state: EditorState, inputs: Inputs) -> Updates:
    """Go to the next or previous image, or page of images."""
    return view(_moved(_with_typed_caption(state, inputs), by, pages=pages), state, inputs)


def apply_filters(state: EditorState, inputs: Inputs) -> Updates:
    """Show the images that pass the filters."""
    new = _filtered(_with_typed_caption(state, inputs), inputs)
    if (new.captions, new.shown) == (state.captions, state.shown):  # gradio 6 sends "change" for new choices too
        return {"state": state}
    return view(new, state, inputs)


def open_folder(page: Page, before: EditorState, inputs: Inputs) -> Updates:
    """Load the folder; unsaved changes are discarded only if Load is clicked twice."""

    def act(state: EditorState, inputs: Inputs) -> tuple[EditorState, str]:
        unsaved = len(state.captions.unsaved) if state.captions else 0
        if unsaved and not before.warned:
            message = f"{counted(unsaved, 'unsaved change')}: click Save to keep, or Load again to discard."
            return replace(state, warned=True), notice("warning", message)
        path = page.dataset_dir(inputs.folder)
        options = {each: page.host.defaults.get(f"filename_{each}") for each in ("word_regex", "join_string")}
        captions = load(path, **{name: str(value) for name, value in options.items() if value is not None})
        return EditorState(captions), ""

    return run(act, before, inputs)


def open_first(page: Page, before: EditorState, inputs: Inputs) -> Updates:
    """Load the folder when the tab is opened: only if nothing is loaded, and without a message if it cannot be."""
    updates = {} if before.captions or not (inputs.folder or "").strip() else open_folder(page, before, inputs)
    return updates if updates and updates["state"].captions else {"state": before}


def keep_typed(state: EditorState, _inputs: Inputs) -> tuple[EditorState, str]:
    """Keep the caption that was typed, which `run` does for every action."""
    return replace(state, captions=loaded(state)), ""


def undo(state: EditorState, _inputs: Inputs) -> tuple[EditorState, str]:
    """Undo the last change."""
    new = loaded(state).undo()
    return replace(state, captions=new), "" if new is not state.captions else notice("info", "There is nothing to undo.")


def redo(state: EditorState, _inputs: Inputs) -> tuple[EditorState, str]:
    """Redo the change that was undone last."""
    new = loaded(state).redo()
    return replace(state, captions=new), "" if new is not state.captions else notice("info", "There is nothing to redo.")


def save(state: EditorState, _inputs: Inputs) -> tuple[EditorState, str]:
    """Write the changed captions."""
    captions = loaded(state)
    if not captions.unsaved:
        return state, notice("info", "There is nothing to save.")
    captions, saved = captions.save()
    done = [f"{counted(saved.written, 'caption')} written"] if saved.written else []
    done += [f"{counted(saved.removed, 'caption file')} removed"] if saved.removed else []
    message = f"Saved: {', '.join(done)}." if done else "Saved."
    if saved.backup:
        message += f" The previous files are in {BACKUP}/{saved.backup.name}."
    return replace(state, captions=captions), notice("good", message)


def rename_tag(captions: Captions, images: Sequence[Path], inputs: Inputs) -> Captions:
    """Rename the one ticked tag; ConfigError unless exactly one is ticked."""
    if len(inputs.ticked or ()) != 1:
        message = f"Rename: tick exactly one tag ({len(inputs.ticked or ())} are ticked)."
        raise ConfigError(message)
    return captions.rename(images, inputs.ticked[0], inputs.new_name or "")


def replace_text(page: Page, captions: Captions, images: Sequence[Path], inputs: Inputs) -> Captions:
    """Replace text, or matches of a regular expression where that is allowed."""
    if inputs.regex and page.is_public:
        message = "Regular expressions are disabled on a public page: one can keep the server busy forever."
        raise ConfigError(message)
    return captions.replace(images, inputs.search or "", inputs.replacement or "", regex=inputs.regex)


def remove_common(before: EditorState, inputs: Inputs) -> Updates:
    """Remove the ticked common tags from all captions, regardless of the filters and the target."""

    def change(captions: Captions, _images: Sequence[Path], inputs: Inputs) -> Captions:
        return captions.remove(captions.images, require_ticked(inputs.common))

    return edit(change, before, replace(inputs, target=ALL))


def find_common(state: EditorState, _inputs: Inputs) -> Updates:
    """Show the tags of nearly all images, ticked, with a button that removes them."""
    hidden = gr.update(visible=False)
    try:
        found = loaded(state).common()
    except ConfigError as error:
        return {"edit_message": notice("error", str(error)), "common": hidden, "remove_common": hidden}
    if not found:
        message = notice("good", "No tag is in nearly all captions (90% or more).")
        return {"edit_message": message, "common": hidden, "remove_common": hidden}
    choices = [(f"{tag} ({share:.0%})", tag) for tag, share in found]
    ticked = gr.update(choices=choices, value=[tag for tag, _ in found], visible=True)
    return {"edit_message": "", "common": ticked, "remove_common": gr.update(visible=True)}


def find_common_again(state: EditorState, inputs: Inputs) -> Updates:
    """Update the common tags after some were removed; the message of the removal stays."""
    updates = find_common(state, inputs)
    return {name: updates[name] for name in ("common", "remove_common")}


def require_tags(tags: str) -> str:
    """The tags that were typed; ConfigError if there are none."""
    if not (tags or "").strip(" ,"):
        message = "New tags: enter one or more tags, separated by commas."
        raise ConfigError(message)
    return tags


def require_ticked(ticked: Sequence[str]) -> Sequence[str]:
    """The ticked tags; ConfigError if there are none."""
    if not ticked:
        message = "Tick one or more tags first."
        raise ConfigError(message)
    return ticked


def _with_typed_caption(state: EditorState, inputs: Inputs) -> EditorState:
    """Keep what was typed for the selected image, so that selecting another does not lose it.

    After two quick clicks the box may still hold an earlier caption; its revision says so.
    """
    captions = state.captions
    if captions and state.selected and inputs.revision == str(state.revision):
        captions = captions.edit(state.selected, inputs.text or "")
    return replace(state, captions=captions, warned=False)


def _filtered(state: EditorState, inputs: Inputs, *, keep_page: bool = False) -> EditorState:
    """Select the images that pass the filters."""
    if state.captions is None:
        return state
    shown = state.captions.having(inputs.all_of or (), inputs.none_of or (), without_caption=bool(inputs.uncaptioned))
    keep_page = keep_page or shown == state.shown
    return replace(state, shown=shown, page=min(state.page, max(0, len(shown) - 1) // PAGE_SIZE) if keep_page else 0)


def _moved(state: EditorState, by: int, *, pages: bool) -> EditorState:
    if not state.shown:
        return state
    last = len(state.shown) - 1
    if pages:
        return replace(state, page=min(max(state.page + by, 0), last // PAGE_SIZE))
    at = state.shown.index(state.selected) + by if state.selected in state.shown else state.page * PAGE_SIZE
    at = min(max(at, 0), last)
    return replace(state, selected=state.shown[at], page=at // PAGE_SIZE)


def loaded(state: EditorState) -> Captions:
    """The captions; ConfigError if no folder is loaded."""
    if state.captions is None:
        message = "Load a folder first: enter its path above and click Load."
        raise ConfigError(message)
    return state.captions


def target_images(state: EditorState, inputs: Inputs) -> Sequence[Path]:
    """The images whose captions are to be edited; ConfigError if one is to be selected first."""
    if inputs.target != ONE:
        return state.shown
    if state.selected is None:
        message = f"Select an image first, or choose “{ALL}”."
        raise ConfigError(message)
    return [state.selected]


def _changes(before: Captions, after: Captions) -> str:
    count = difference(before, after)
    if not count:
        return notice("info", "No caption had to be changed.")
    message = f"{counted(count, 'caption')} changed. {counted(len(after.unsaved), 'unsaved change')}: click Save to write."
    return notice("good", message)
