"""Speed and memory, measured side by side on the machine that they run on."""
