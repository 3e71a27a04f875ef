"""The page: panels in Gradio, shown in the WebUI's tab and served standalone."""
