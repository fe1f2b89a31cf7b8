// Bundles the page into engine_router/web/page: `node build.mjs`, or `node build.mjs --watch` while working on it.
import { mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const page = join(here, "..", "page");
const watching = process.argv.includes("--watch");

const nameOf = (path) => path.split(/[\\/]/).at(-1);

/** An entry point's bundle: its name, with its hash, and those of the bundles without which it cannot begin. */
function bundleOf(metafile, entry) {
  for (const [path, output] of Object.entries(metafile.outputs)) {
    if (output.entryPoint !== entry) continue;
    const needed = output.imports.filter(({ kind }) => kind === "import-statement");
    return { name: nameOf(path), needs: needed.map((each) => nameOf(each.path)) };
  }
  throw new Error(`nothing was made of ${entry}`);
}

/** The names of the packages whose code is in the bundles. */
function packagesIn(metafile) {
  const names = Object.keys(metafile.inputs).map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]);
  return [...new Set(names.filter(Boolean))].sort();
}

async function licences(metafile) {
  const texts = packagesIn(metafile).map(async (name) => {
    const folder = join(here, "node_modules", name);
    const file = (await readdir(folder)).find((each) => /^licen[cs]e/i.test(each));
    return `${name}\n\n${file ? await readFile(join(folder, file), "utf8") : ""}`;
  });
  return (await Promise.all(texts)).join("\n\n");
}

/** Writes what was bundled into a folder of its own, which then takes the place of the page's. */
async function publish(result) {
  const fresh = `${page}.${process.pid}`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(join(fresh, "assets"), { recursive: true });
  const sizes = [];
  for (const file of result.outputFiles) {
    const name = nameOf(file.path);
    const packed = gzipSync(file.contents, { level: 9 });
    await writeFile(join(fresh, "assets", name), file.contents);
    await writeFile(join(fresh, "assets", `${name}.gz`), packed);
    sizes.push([name, file.contents.length, packed.length]);
  }
  const template = await readFile(join(here, "index.html"), "utf8");
  const main = bundleOf(result.metafile, "src/main.tsx");
  const preloads = main.needs.map((name) => `<link rel="modulepreload" nonce="{nonce}" href="ui/${name}">`);
  const index = template
    .replace("{style}", bundleOf(result.metafile, "src/style.css").name)
    .replace("{main}", main.name)
    .replace("{preloads}", preloads.join("\n"));
  await writeFile(join(fresh, "index.html"), index);
  await writeFile(join(fresh, "licences.txt"), await licences(result.metafile));
  await rm(page, { recursive: true, force: true });
  await rename(fresh, page);
  for (const [name, size, packed] of sizes) console.log(`${name}  ${size} bytes, ${packed} gzipped`);
}

/**
 * Has whatever is loaded later import all that the first view needs, which is there by then. So that is one bundle:
 * else there would be one for each set of views that share something, and an empty cache would have to ask for all.
 */
const oneFirstBundle = {
  name: "one first bundle",
  setup: (build) => {
    const later = new Set();
    build.onResolve({ filter: /^\./ }, async (args) => {
      if (args.kind !== "dynamic-import" || args.pluginData?.isResolved) return undefined;
      const { importer, resolveDir, kind } = args;
      const found = await build.resolve(args.path, { importer, resolveDir, kind, pluginData: { isResolved: true } });
      later.add(found.path);
      return found;
    });
    build.onLoad({ filter: /\.tsx?$/ }, async ({ path }) => {
      if (!later.has(path)) return undefined;
      const source = await readFile(path, "utf8");
      return { contents: `${source}\nimport ${JSON.stringify(join(here, "src", "app.tsx"))};\n`, loader: path.endsWith("x") ? "tsx" : "ts" };
    });
  },
};

const options = {
  absWorkingDir: here,
  entryPoints: ["src/main.tsx", "src/style.css"],
  outdir: "../page/assets",
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  // As in tsconfig.json, which esbuild does not read for what a plugin loads.
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: !watching,
  sourcemap: watching ? "inline" : false,
  metafile: true,
  write: false,
  logLevel: "warning",
  plugins: [
    oneFirstBundle,
    {
      name: "publish",
      setup: (build) => build.onEnd((result) => (result.errors.length ? undefined : publish(result))),
    },
  ],
};

if (watching) await (await esbuild.context(options)).watch();
else await esbuild.build(options);
