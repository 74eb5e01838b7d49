#!/bin/sh
# Find a Chromium for the browser tests, or get one: the system's, Playwright's, Debian's.
set -eu
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1; then
        echo "browser tests use $(command -v "$name")"
        exit 0
    fi
done
if python -m playwright install chromium >/dev/null 2>&1; then
    echo "browser tests use Playwright's own Chromium"
    exit 0
fi
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq chromium >/dev/null
    exit 0
fi
echo "no Chromium was found or could be installed: install one, or name it in CHROMIUM" >&2
exit 1
