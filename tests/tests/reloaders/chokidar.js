const chokidar = require("chokidar"), fs = require("fs"), path = require("path");
const file = process.argv[1];
chokidar.watch(path.dirname(file), { ignoreInitial: true })
  .on("ready", () => console.log("ready"))
  .on("all", (event, changed) => {
    if (changed !== file || (event !== "add" && event !== "change")) return;
    try { console.log("loaded " + fs.readFileSync(file, "utf8")); } catch { /* it went in this moment */ }
  });
