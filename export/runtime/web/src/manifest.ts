/** What is in the bundle, and the proof that every byte of it is what was exported. */
import { RekdError, broken } from "./errors.js";

/** Newest schemas of `manifest.json` and `config.json` that are understood here. */
export const MANIFEST_SCHEMA_VERSION = 1;
export const CONFIG_SCHEMA_VERSION = 3;
const FORMAT = "rekd-edge-bundle";

/** The answer to a request for one file of the bundle. A folder that is served: `fetch`. */
export type BundleSource = (path: string) => Promise<Response>;

export interface FileEntry {
  readonly path: string;
  readonly sha256: string;
  readonly sizeBytes: number;
}

export interface Manifest {
  readonly document: Readonly<Record<string, unknown>>;
  /** Of `manifest.json` itself: the fingerprint of the whole bundle. */
  readonly sha256: string;
  readonly files: readonly FileEntry[];
}

export interface Progress {
  readonly path: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export function served(folder: string | URL): BundleSource {
  const base = new URL(folder, globalThis.location?.href);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return (path) => fetch(new URL(path.split("/").map(encodeURIComponent).join("/"), base));
}

/**
 * Reads every file and compares it with `manifest.json`; returns the files in `wanted`.
 * `fingerprint`, where given, is what the sha256 of the manifest has to be.
 */
export async function verifyBundle(
  source: BundleSource,
  wanted: ReadonlySet<string>,
  fingerprint?: string,
  onProgress: (progress: Progress) => void = () => {},
): Promise<{ manifest: Manifest; files: Map<string, Uint8Array<ArrayBuffer>> }> {
  if (globalThis.crypto?.subtle === undefined) {
    throw new RekdError(
      "backend",
      "This browser offers no SHA-256 here, so the bundle cannot be verified.",
      "Open the page over https or from localhost.",
    );
  }
  const manifest = await readManifest(source, fingerprint);
  const totalBytes = manifest.files.reduce((sum, file) => sum + file.sizeBytes, 0);
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  const problems: string[] = [];
  let before = 0;
  for (const entry of manifest.files) {
    const { path, sizeBytes } = entry;
    onProgress({ path, doneBytes: before, totalBytes });
    const content = await compared(source, entry, (bytes) =>
      onProgress({ path, doneBytes: before + bytes, totalBytes }),
    );
    before += sizeBytes;
    if (typeof content === "string") problems.push(`${path} ${content}`);
    else if (wanted.has(path)) files.set(path, content);
  }
  onProgress({ path: "", doneBytes: totalBytes, totalBytes });
  if (problems.length > 0) {
    const more = problems.length > 3 ? `; and ${problems.length - 3} more` : "";
    throw broken(`The bundle is not what its manifest promises: ${problems.slice(0, 3).join("; ")}${more}`);
  }
  return { manifest, files };
}

/** One file of a bundle that was verified before, read and compared once more. */
export async function verifiedFile(
  source: BundleSource,
  entry: FileEntry,
): Promise<Uint8Array<ArrayBuffer>> {
  const content = await compared(source, entry);
  if (typeof content === "string") throw broken(`${entry.path} ${content}`);
  return content;
}

export function parseJson(content: Uint8Array, name: string): Record<string, unknown> {
  let document: unknown;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch (error) {
    throw broken(`${name} is not valid JSON (${String(error)})`);
  }
  if (typeof document !== "object" || document === null || Array.isArray(document)) {
    throw broken(`${name} is not a JSON object`);
  }
  return document as Record<string, unknown>;
}

/** The `schema_version`; throws where there is none, or one above `newest`. */
export function requireSchema(
  document: Record<string, unknown>,
  name: string,
  newest: number,
): number {
  const version = document["schema_version"];
  if (typeof version !== "number" || !Number.isInteger(version) || version < 1) {
    throw broken(`${name}: schema_version is not a positive integer`);
  }
  if (version > newest) {
    throw new RekdError(
      "integrity",
      `${name}: schema_version ${version} is newer than ${newest}, the newest known here`,
      "build this page again with the rekd-edge that made the bundle",
    );
  }
  return version;
}

async function readManifest(source: BundleSource, fingerprint?: string): Promise<Manifest> {
  const content = await read(source, "manifest.json", 16 << 20);
  if (typeof content === "string") throw broken(`manifest.json ${content}`);
  const sha256 = await digest(content);
  if (fingerprint !== undefined && sha256 !== fingerprint) {
    throw broken(
      `manifest.json has the sha256 ${sha256}, and this page was built for ${fingerprint}`,
    );
  }
  const document = parseJson(content, "manifest.json");
  if (document["format"] !== FORMAT) throw broken(`manifest.json: format is not ${FORMAT}`);
  requireSchema(document, "manifest.json", MANIFEST_SCHEMA_VERSION);
  const entries = document["files"];
  if (!Array.isArray(entries) || entries.length === 0) {
    throw broken("manifest.json: files is not a list of files");
  }
  const files = entries.map(fileEntry);
  if (new Set(files.map(({ path }) => path)).size !== files.length) {
    throw broken("manifest.json lists a file twice");
  }
  return { document, sha256, files };
}

function fileEntry(entry: unknown): FileEntry {
  const { path, sha256, size_bytes: size } = (entry ?? {}) as Record<string, unknown>;
  if (typeof path !== "string" || typeof sha256 !== "string" || typeof size !== "number") {
    throw broken("manifest.json: a file needs path, sha256 and size_bytes");
  }
  const parts = path.split("/");
  if (/[\\:\0]/.test(path) || parts.some((part) => ["", ".", ".."].includes(part))) {
    throw broken(`manifest.json names a path outside the bundle: ${JSON.stringify(path)}`);
  }
  return { path, sha256, sizeBytes: size };
}

/** The content, or what is wrong with it. Stops where there is more than `limit` bytes. */
async function read(
  source: BundleSource,
  path: string,
  limit: number,
  onBytes: (bytes: number) => void = () => {},
): Promise<Uint8Array<ArrayBuffer> | string> {
  try {
    const response = await source(path);
    if (!response.ok || response.body === null) return `is missing (status ${response.status})`;
    const content = new Uint8Array(path === "manifest.json" ? 0 : limit);
    const parts: Uint8Array[] = [];
    const reader = response.body.getReader();
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (size + value.length > limit) {
        await reader.cancel();
        return `has more than ${limit} bytes`;
      }
      if (content.length > 0) content.set(value, size);
      else parts.push(value);
      size += value.length;
      onBytes(size);
    }
    if (content.length > 0) return size === limit ? content : content.slice(0, size);
    return new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
  } catch (error) {
    return `cannot be read (${error instanceof Error ? error.message : String(error)})`;
  }
}

/** The content, or in what it is not that of `entry`. */
async function compared(
  source: BundleSource,
  entry: FileEntry,
  onBytes?: (bytes: number) => void,
): Promise<Uint8Array<ArrayBuffer> | string> {
  const content = await read(source, entry.path, entry.sizeBytes, onBytes);
  return typeof content === "string" ? content : (await difference(content, entry)) || content;
}

async function difference(content: Uint8Array<ArrayBuffer>, entry: FileEntry): Promise<string> {
  if (content.length !== entry.sizeBytes) {
    return `has ${content.length} bytes, not ${entry.sizeBytes}`;
  }
  return (await digest(content)) === entry.sha256 ? "" : "has changed (sha256)";
}

async function digest(content: Uint8Array<ArrayBuffer>): Promise<string> {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
