/** The library as one module for node, with ONNX Runtime in it. */
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

import { build } from "esbuild";

const HERE = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

export async function library(folder) {
  const outfile = path.join(folder, "library.mjs");
  await build({
    absWorkingDir: HERE,
    stdin: {
      contents:
        'export * from "./src/rationalist.js"; export * from "./page/highlight.js";' +
        'export * from "./src/manifest.js"; export * from "./src/config.js";' +
        'export * from "./src/decision.js"; export * from "./src/rationale.js";' +
        'export * from "./src/why_not.js"; export * from "./page/answer.js";',
      resolveDir: HERE,
    },
    bundle: true,
    format: "esm",
    platform: "node",
    alias: {
      "onnxruntime-web/wasm": path.join(
        HERE,
        "node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
      ),
    },
    external: [path.join(HERE, "node_modules/onnxruntime-web/dist/*")],
    outfile,
    logLevel: "error",
  });
  return import(pathToFileURL(outfile));
}
