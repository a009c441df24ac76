"""Which key does what. The usual keys of a line editor come with prompt_toolkit."""

from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys


def bindings(repl) -> KeyBindings:
    """All keys of the REPL; `repl` does what they stand for."""
    keys = KeyBindings()
    typing = ~is_searching

    @keys.add("enter", filter=typing)
    def _(event):
        complete = repl.buffer.complete_state
        if complete and complete.current_completion:
            repl.buffer.complete_state = None
        else:
            repl.send()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def _(event):
        repl.buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste)
    def _(event):
        repl.buffer.insert_text(repl.pastes.taken(event.data))

    @keys.add("c-c", filter=typing)
    @keys.add("<sigint>")
    def _(event):
        repl.stop(control_c=True)

    @keys.add("escape", filter=typing & Condition(lambda: not repl.app.key_processor.input_queue), eager=True)
    def _(event):
        repl.stop(control_c=False)

    @keys.add("c-d", filter=typing & Condition(lambda: not repl.buffer.text))
    def _(event):
        repl.leave()

    @keys.add("c-o")
    def _(event):
        event.app.create_background_task(repl.show_all())

    @keys.add("c-g", filter=typing)
    @keys.add("c-x", "c-e", filter=typing)
    def _(event):
        event.app.create_background_task(repl.edit())

    @keys.add("c-z")
    def _(event):
        event.app.suspend_to_background()

    return keys
