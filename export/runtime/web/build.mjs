/**
 * A folder of static files around a bundle:
 *
 *     node build.mjs --bundle BUNDLE --output FOLDER
 *
 * The bundle is verified first and only what its manifest lists is copied. Everything is written
 * beside FOLDER and renamed; a FOLDER that is not such a build is never replaced.
 */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { build, transform } from "esbuild";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ONNXRUNTIME = path.join(HERE, "node_modules", "onnxruntime-web");
const WASM = "ort-wasm-simd-threaded.wasm";
const WORKER = "service_worker.js";
/** In the index.html of every page that is built here. */
const MARK = 'name="rekd-fingerprint"';

class UsageError extends Error {}

/** The library, and the page that imports it; ONNX Runtime stays a file of its own. */
async function scripts(folder) {
  const external = {
    name: "external",
    setup(own) {
      own.onResolve({ filter: /^onnxruntime-web\/wasm$/ }, () => ({
        path: "./onnxruntime.js",
        external: true,
      }));
      own.onResolve({ filter: /src\/rationalist\.js$/ }, ({ kind }) =>
        kind === "entry-point" ? null : { path: "./rationalist.js", external: true },
      );
    },
  };
  const shared = {
    absWorkingDir: HERE,
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    legalComments: "none",
    outdir: folder,
    plugins: [external],
    logLevel: "warning",
  };
  await build({ ...shared, entryPoints: ["src/rationalist.ts", "page/page.ts"], outbase: "x",
    entryNames: "[name]" });
  await fs.copyFile(
    path.join(ONNXRUNTIME, "dist", "ort.wasm.bundle.min.mjs"),
    path.join(folder, "onnxruntime.js"),
  );
  await fs.copyFile(path.join(ONNXRUNTIME, "dist", WASM), path.join(folder, WASM));
}

/** What the page itself will do with the bundle, done before it is copied. */
async function verified(bundle) {
  const checker = await build({
    absWorkingDir: HERE,
    stdin: {
      contents:
        'export * from "./src/manifest.js"; export * from "./src/config.js";' +
        'export * from "./src/wordpiece.js";',
      resolveDir: HERE,
    },
    bundle: true,
    format: "esm",
    platform: "node",
    write: false,
  });
  const code = Buffer.from(checker.outputFiles[0].contents).toString("base64");
  const { verifyBundle, readConfig, parseJson, WordPiece } = await import(
    `data:text/javascript;base64,${code}`
  );
  const source = async (name) => new Response(await fs.readFile(path.join(bundle, name)));
  const small = ["config.json", "preprocessor_config.json", "tokenizer.json"];
  const { manifest, files } = await verifyBundle(source, new Set(small));
  const config = readConfig(files.get(small[0]), files.get(small[1]));
  if (config.modality === "text") {
    WordPiece.from(parseJson(files.get(small[2]), small[2]), config.maxLength);
  }
  if (manifest.files.some((file) => file.path === "model.onnx.data")) {
    throw new UsageError("the model is above 1 GB, too large for a browser");
  }
  return { manifest, config };
}

const DOES = {
  single_label_classification: "Classifies",
  multi_label_classification: "Says which labels belong to",
  regression: "Rates",
};

async function page(folder, manifest, { problemType }) {
  const { name, lineage, modality } = manifest.document;
  const what = modality === "text" ? "a text" : "an image";
  const values = {
    name,
    description: lineage?.description || `${DOES[problemType]} ${what} and shows what the answer was read from.`,
    fingerprint: manifest.sha256,
  };
  const escaped = (text) =>
    String(text).replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
  const html = await fs.readFile(path.join(HERE, "page", "index.html"), "utf8");
  await fs.writeFile(
    path.join(folder, "index.html"),
    html.replace(/@(name|description|fingerprint)@/g, (_, key) => escaped(values[key])),
  );
  const css = await fs.readFile(path.join(HERE, "page", "page.css"), "utf8");
  const { code } = await transform(css, { loader: "css", minify: true });
  await fs.writeFile(path.join(folder, "page.css"), code);
  await fs.copyFile(path.join(HERE, "page", "icon.svg"), path.join(folder, "icon.svg"));
  const application = {
    name,
    short_name: name.slice(0, 30),
    start_url: "./index.html",
    scope: "./",
    display: "standalone",
    background_color: "#f6f5f2",
    theme_color: "#17324d",
    icons: [{ src: "icon.svg", sizes: "any", type: "image/svg+xml" }],
  };
  await fs.writeFile(path.join(folder, "app.webmanifest"), JSON.stringify(application, null, 2));
  const { version, license } = JSON.parse(
    await fs.readFile(path.join(ONNXRUNTIME, "package.json"), "utf8"),
  );
  await fs.writeFile(
    path.join(folder, "LICENCES.txt"),
    "rekd-edge: Apache-2.0\n" +
      `onnxruntime.js and ${WASM}: onnxruntime-web ${version}, ${license}, Microsoft\n` +
      "bundle/: see bundle/README.md\n",
  );
}

/** The service worker knows every other file and its sha256. */
async function worker(folder) {
  const names = (await fs.readdir(folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(folder, path.join(entry.parentPath, entry.name)))
    .sort();
  const files = {};
  for (const name of names) {
    const content = await fs.readFile(path.join(folder, name));
    files[name.split(path.sep).join("/")] = createHash("sha256").update(content).digest("hex");
  }
  const all = createHash("sha256").update(JSON.stringify(files)).digest("hex");
  await build({
    absWorkingDir: HERE,
    entryPoints: ["page/service_worker.ts"],
    bundle: true,
    format: "iife",
    target: "es2022",
    minify: true,
    define: { BUILT_FILES: JSON.stringify(files), BUILD_NAME: JSON.stringify(all.slice(0, 16)) },
    outfile: path.join(folder, WORKER),
    logLevel: "warning",
  });
}

async function copyBundle(bundle, folder, manifest) {
  for (const name of ["manifest.json", ...manifest.files.map((file) => file.path)]) {
    const target = path.join(folder, "bundle", name);
    await fs.mkdir(path.dirname(target), { recursive: true });
    await fs.copyFile(path.join(bundle, name), target);
  }
}

async function requireReplaceable(output) {
  const names = await fs.readdir(output).catch((error) => {
    if (error.code === "ENOENT") return [];
    throw new UsageError(`${output} is not a folder`);
  });
  if (names.length === 0) return;
  const html = await fs.readFile(path.join(output, "index.html"), "utf8").catch(() => "");
  if (!names.includes(WORKER) || !html.includes(MARK)) {
    throw new UsageError(`${output} exists and is not a page that was built here: name a new folder`);
  }
}

async function main() {
  const { values } = parseArgs({
    options: { bundle: { type: "string" }, output: { type: "string" } },
  });
  if (!values.bundle || !values.output) {
    throw new UsageError("name the bundle and the folder to make: --bundle BUNDLE --output FOLDER");
  }
  const output = path.resolve(values.output);
  const { manifest, config } = await verified(path.resolve(values.bundle));
  await requireReplaceable(output);
  await fs.mkdir(path.dirname(output), { recursive: true });
  const folder = await fs.mkdtemp(path.join(path.dirname(output), `.${path.basename(output)}.`));
  try {
    await scripts(folder);
    await page(folder, manifest, config);
    await copyBundle(path.resolve(values.bundle), folder, manifest);
    await worker(folder);
    await fs.chmod(folder, 0o755);
    await fs.rm(output, { recursive: true, force: true });
    await fs.rename(folder, output);
  } catch (error) {
    await fs.rm(folder, { recursive: true, force: true });
    throw error;
  }
  const size = async (name) => (await fs.stat(path.join(output, name))).size;
  const [library, own] = [await size("rationalist.js"), await size("page.js")];
  console.log(`${output}: library ${library} bytes, page ${own} bytes, without ONNX Runtime`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  main().catch((error) => {
    const isExpected = error instanceof UsageError || error.name === "RekdError";
    console.error(isExpected ? `error: ${error.message}` : error);
    if (error.hint) console.error(`  hint: ${error.hint}`);
    process.exitCode = error.kind === "integrity" ? 6 : isExpected ? 2 : 1;
  });
}
