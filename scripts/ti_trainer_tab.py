"""What the WebUI executes at start and at every "Reload UI": it registers our callbacks, and does nothing else."""

from modules import script_callbacks

from ti_trainer.hosts.webui import tab

script_callbacks.on_after_component(tab.note_component)
script_callbacks.on_ui_settings(tab.add_settings)
script_callbacks.on_ui_tabs(tab.tabs)
script_callbacks.on_app_started(tab.add_route)
