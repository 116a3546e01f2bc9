import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";

import { chromium } from "playwright-core";

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** A browser with a new, empty profile; `close` removes the profile again. */
export async function openChromium(settings = {}) {
  const profile = await fs.mkdtemp(path.join(os.tmpdir(), "rekd-web-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: FLAGS,
    locale: "en-GB",
    ...settings,
  });
  const close = async () => {
    await context.close();
    await fs.rm(profile, { recursive: true, force: true });
  };
  return { context, close };
}
