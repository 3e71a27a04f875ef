"""Register our callbacks with the WebUI, which runs this file at start and at every "Reload UI". Does nothing else."""

from modules import script_callbacks

from ti_trainer.hosts.webui import tab

script_callbacks.on_after_component(tab.note_component)
script_callbacks.on_ui_settings(tab.add_settings)
script_callbacks.on_ui_tabs(tab.tabs)
script_callbacks.on_app_started(tab.add_route)
