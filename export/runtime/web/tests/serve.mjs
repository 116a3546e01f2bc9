/** A folder on a free port of the loopback interface; `node serve.mjs FOLDER` shows it. */
import fs from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { pathToFileURL } from "node:url";

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".webmanifest": "application/manifest+json",
};

/** `replaced` may change what is sent: `(path, content) => content`, null for "not found". */
export async function serve(folder, replaced = (_, content) => content) {
  const server = createServer((request, response) => {
    const asked = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const name = asked.endsWith("/") ? `${asked}index.html` : asked;
    const file = path.join(folder, path.normalize(name));
    const found = file.startsWith(folder + path.sep) && fs.statSync(file, { throwIfNoEntry: false });
    const content = found && found.isFile() ? replaced(name.slice(1), fs.readFileSync(file)) : null;
    if (content === null) {
      response.writeHead(404).end();
      return;
    }
    const type = TYPES[path.extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { "content-type": type, "cache-control": "no-cache" }).end(content);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://localhost:${server.address().port}/`, close };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { url } = await serve(path.resolve(process.argv[2]));
  console.log(url);
}
