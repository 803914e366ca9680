import os, sys
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

path = sys.argv[1]


class Loader(FileSystemEventHandler):
    def on_any_event(self, event):
        # Reading the file makes events, too: opened, closed.
        if event.event_type in ("created", "modified", "moved") and path in (event.src_path, getattr(event, "dest_path", "")):
            try:
                print("loaded", open(path).read(), flush=True)
            except FileNotFoundError:
                pass


observer = Observer()
observer.schedule(Loader(), os.path.dirname(path))
observer.start()
print("ready", flush=True)
observer.join()
