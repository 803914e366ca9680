//! What is done with which program. Scripts run in bash with `-e` and `pipefail`.

use super::Case;

/// All names with their kind, mode, length and target, and what is in the files.
const TREE: &str = "find . -mindepth 1 -type d -printf '%P %m\\n' -o -printf '%P %y %m %s %l\\n' | sort; find . -type f | sort | xargs -r cat";

/// Some files, links and directories.
macro_rules! sample {
    ($rest:literal) => {
        concat!(
            "mkdir -p src/deep/er; printf 'one\\ntwo\\nthree\\n' > src/a; printf x > src/deep/b; : > src/empty; ",
            "ln -s ../a src/deep/link; chmod 750 src/deep; chmod 600 src/a; ",
            "touch -d '2001-02-03 04:05:06' src/a src/deep/b src/empty; ",
            $rest
        )
    };
}

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        program: "vim",
        needs: &["vim"],
        what: "edits a file, with a swap file; then with a backup copy",
        done: "printf 'one\\ntwo\\n' > f; cp f g; vim -u NONE -i NONE -es -c '%s/two/zwei/' -c wq f; \
               vim -u NONE -i NONE -es -c 'set backup backupcopy=no backupskip=' -c '%s/two/zwei/' -c wq g; ls -A",
        look: "ls -A; cat f g g~",
    },
    Case {
        program: "nano",
        needs: &["nano", "python3"],
        what: "edits a file in a terminal, and saves it at the end",
        done: r#"echo two > f; python3 -c '
import os, pty
pid, terminal = pty.fork()
if pid == 0: os.execvp("nano", ["nano", "-I", "f"])
screen, keys = b"", [(b"two", b"one \x18"), (b"Save modified", b"y"), (b"File Name", b"\r")]
while True:
    try: screen += os.read(terminal, 4096)
    except OSError: break
    if keys and keys[0][0] in screen: os.write(terminal, keys.pop(0)[1])
os.waitpid(pid, 0)
'"#,
        look: "ls -A; cat f",
    },
    Case {
        program: "sed -i",
        needs: &["sed"],
        what: "edits in place, with a backup",
        done: "printf 'one\\ntwo\\n' > f; chmod 640 f; sed -i.bak s/two/zwei/ f",
        look: TREE,
    },
    Case {
        program: "cp -a",
        needs: &["cp"],
        what: "copies a tree with modes, times and links",
        done: sample!("cp -a src copy; diff -r src copy; stat -c '%a %Y' copy/a copy/deep/b"),
        look: "cd copy; find . -printf '%P %y %m %l\\n' | sort; stat -c '%a %Y' a deep/b",
    },
    Case {
        program: "rsync",
        needs: &["rsync"],
        what: "copies a tree; a second run finds nothing to do; a third sends what changed and deletes",
        done: sample!(
            "rsync -a src/ dst; rsync -ai src/ dst; rm src/empty; echo more >> src/a; \
             rsync -a --delete src/ dst; diff -r src dst"
        ),
        look: TREE,
    },
    Case {
        program: "tar",
        needs: &["tar"],
        what: "packs a tree, and unpacks it elsewhere",
        done: sample!(
            "tar cf t.tar src; tar tf t.tar | sort; mkdir out; tar xpf t.tar -C out; diff -r src out/src; rm t.tar"
        ),
        look: TREE,
    },
    Case {
        program: "mv",
        needs: &["mv"],
        what: "renames files and directories, over existing ones, and across directories",
        done: sample!(
            "echo y > y; mv y src/empty; mv src/a src/deep/moved; mkdir into gone; mv src/deep into; \
             mv -T into/deep gone; mv src into/; mv -n gone/moved gone/b; ls -R"
        ),
        look: TREE,
    },
    Case {
        program: "install",
        needs: &["install"],
        what: "copies with a mode, over an existing file, and makes directories",
        done: "echo x > f; install -D -m 750 f usr/bin/f; echo y > f; install -m 644 f usr/bin/f; install -d -m 700 made",
        look: TREE,
    },
    Case {
        program: "git",
        needs: &["git"],
        what: "init, add, commit, branch, checkout, merge, status, gc, fsck",
        done: "export GIT_AUTHOR_DATE='2001-02-03T04:05:06Z' GIT_COMMITTER_DATE='2001-02-03T04:05:06Z'; \
               g() { git -c user.name=n -c user.email=e -c init.defaultBranch=main -c gc.auto=0 \"$@\"; }; \
               mkdir r; cd r; g init -q; echo one > f; mkdir d; echo two > d/g; g add .; g commit -qm first; \
               g checkout -qb side; echo three >> f; g commit -qam second; g checkout -q main; cat f; \
               g merge -q side; g status --porcelain; g gc -q; g fsck --no-progress; g log --format=%H",
        look: "cd r; cat f d/g; git -c safe.directory='*' status --porcelain; git -c safe.directory='*' log --format=%H",
    },
    Case {
        program: "sqlite3",
        needs: &["sqlite3"],
        what: "a database with a rollback journal",
        done: "sqlite3 db 'create table t(x); insert into t values(1),(2); update t set x=x*10 where x=2; \
               begin; delete from t; rollback; pragma integrity_check; select sum(x) from t'",
        look: "sqlite3 -readonly db 'select * from t'; ls -A",
    },
    Case {
        program: "sqlite3, two hosts",
        needs: &["sqlite3"],
        what: "a writer on one host locks out the other; then both write at once, and no row is lost",
        done: "sqlite3 \"$A/db\" 'create table t(x)'; \
               printf 'begin exclusive;\\n.shell sqlite3 \"$B/db\" \"insert into t values(0)\" 2>&1 | grep -o locked\\ncommit;\\n' \
               | sqlite3 \"$A/db\"; \
               add() { for i in 1 2 3 4 5 6 7 8; do sqlite3 -cmd '.timeout 30000' \"$1/db\" \"insert into t values($2$i)\"; done; }; \
               add \"$A\" 1 & add \"$B\" 2; wait $!; sqlite3 \"$A/db\" 'select count(*), count(distinct x) from t'",
        look: "sqlite3 -readonly db 'select x from t order by x; pragma integrity_check'",
    },
    Case {
        program: "flock",
        needs: &["flock"],
        what: "a lock that one host holds is busy on the other, and free afterwards",
        done: "flock \"$A/l\" bash -c 'flock -n \"$B/l\" true || echo busy; flock -s -w 0.1 \"$B/l\" true || echo busy'; \
               flock -n \"$B/l\" echo free; flock -s \"$A/l\" flock -sn \"$B/l\" echo shared",
        look: "ls -A",
    },
    Case {
        program: "set -o noclobber",
        needs: &[],
        what: "of two hosts that make a lock file at once (O_EXCL), exactly one gets it; 20 times",
        done: "set -o noclobber; take() { (: > \"$1/lock\") 2> /dev/null && echo \"$2\" >> \"$A/won\" || true; }; \
               for i in $(seq 20); do take \"$A\" x & take \"$B\" x; wait $!; rm lock; done; wc -l < won",
        look: "cat won; ls -A",
    },
    Case {
        program: "mkdir as a lock",
        needs: &[],
        what: "of two hosts that make a directory at once, exactly one does; 20 times",
        done: "take() { mkdir \"$1/lock\" 2> /dev/null && echo x >> \"$A/won\" || true; }; \
               for i in $(seq 20); do take \"$A\" & take \"$B\"; wait $!; rmdir lock; done; wc -l < won",
        look: "cat won; ls -A",
    },
    Case {
        program: "tail -F",
        needs: &["tail"],
        what: "follows a file on the other host: what is appended, and the next one after a rotation",
        done: "echo one > log; sync \"$B\"; { timeout 60 tail -n +1 -F \"$B/log\" 2> /dev/null || true; } | { \
               read -r l; echo \"$l\"; echo two >> log; read -r l; echo \"$l\"; \
               mv log log.1; echo three > log; read -r l; echo \"$l\"; echo four >> log; read -r l; echo \"$l\"; }",
        look: "cat log.1 log",
    },
    Case {
        program: "ln -sfn, mv -T",
        needs: &[],
        what: "a link to the current version is swapped, in both of the usual ways",
        done: "mkdir v1 v2 v3; echo 1 > v1/f; echo 2 > v2/f; echo 3 > v3/f; ln -s v1 current; cat current/f; \
               ln -sfn v2 current; cat current/f; ln -s v3 tmp; mv -T tmp current; cat current/f",
        look: "readlink current; cat current/f; ls -A",
    },
    Case {
        program: "find",
        needs: &["find"],
        what: "by name, kind, size, time and mode; -exec, -delete",
        done: sample!(
            "find . -newermt 2002-01-01 -type f; find . -size -2c -type f | sort; find . -perm 600; find . -type l; \
             find . -name b -exec cat {} +; find . -name empty -delete; find . -empty"
        ),
        look: TREE,
    },
    Case {
        program: "grep -r",
        needs: &["grep"],
        what: "searches a tree",
        done: sample!("grep -rn t src | sort; grep -rL x src | sort"),
        look: "grep -rc o . | sort",
    },
    Case {
        program: "diff, patch",
        needs: &["diff", "patch"],
        what: "compares trees, and applies the difference",
        done: sample!(
            "cp -r src new; echo four >> new/a; echo n > new/n; diff --no-dereference -ruN src new > p || true; \
             (cd src; patch -sp1 < ../p); diff -r src new; rm p"
        ),
        look: TREE,
    },
    Case {
        program: "make",
        needs: &["make"],
        what: "builds what is older than its source, and nothing else",
        done: "printf 'out: in\\n\\tcp in out; echo built\\n' > Makefile; echo 1 > in; make -s; make -q; \
               touch -d '+2 seconds' in; make -q || echo old; make -s; cat out",
        look: "cat out; ls -A",
    },
    Case {
        program: "python3",
        needs: &["python3"],
        what: "every mode of open, os.replace, lockf, a named temporary file",
        done: "python3 -c '\n\
import fcntl, os, tempfile\n\
open(\"w\", \"w\").write(\"w\"); open(\"a\", \"a\").write(\"1\"); open(\"a\", \"ab\").write(b\"2\"); open(\"x\", \"x\").write(\"x\")\n\
try: open(\"x\", \"x\")\n\
except FileExistsError: print(\"exists\")\n\
with open(\"r+\", \"w+\") as f: f.write(\"hello\"); f.seek(0); print(f.read())\n\
with open(\"r+\", \"r+\") as f: f.seek(1); f.write(\"ELL\"); f.truncate(4); f.seek(0); print(f.read())\n\
with tempfile.NamedTemporaryFile(\"w\", dir=\".\", delete=False) as f: f.write(\"new\"); f.flush(); os.fsync(f.fileno())\n\
os.replace(f.name, \"w\")\n\
with open(\"a\", \"r+\") as f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1); print(\"locked\")\n\
print(sorted(os.listdir(\".\")), [e.stat().st_size for e in sorted(os.scandir(\".\"), key=lambda e: e.name)])\n\
'",
        look: TREE,
    },
    Case {
        program: "go: prometheus-pushgateway",
        needs: &["prometheus-pushgateway"],
        what: "a Go program that keeps its state in a file: os.CreateTemp, os.Rename",
        done: "prometheus-pushgateway --persistence.file=state --web.listen-address=127.0.0.1:$PORT 2> /dev/null & \
               pid=$!; trap 'kill $pid' EXIT; \
               for i in $(seq 300); do (: < /dev/tcp/127.0.0.1/$PORT) 2> /dev/null && break; sleep 0.1; done; \
               exec 3<> /dev/tcp/127.0.0.1/$PORT; \
               printf 'PUT /metrics/job/j HTTP/1.0\\r\\nContent-Length: 13\\r\\n\\r\\nmy_metric 42\\n' >&3; head -n 1 <&3 | cut -d' ' -f2; \
               trap - EXIT; kill $pid; wait $pid; grep -c my_metric state; ls -A",
        look: "grep -c my_metric state; ls -A",
    },
    Case {
        program: "node: write-file-atomic",
        needs: &["node", "/usr/share/nodejs/write-file-atomic"],
        what: "writes files by way of a temporary one, many at once",
        done: "echo old > f0; node -e '\n\
const write = require(\"write-file-atomic\");\n\
Promise.all([...Array(20).keys()].map(i => write(\"f\" + i % 5, \"value \" + i + \"\\n\", { mode: 0o640 })))\n\
  .then(() => console.log(\"written\"));\n\
'",
        look: TREE,
    },
    Case {
        program: "systemd-tmpfiles",
        needs: &["systemd-tmpfiles"],
        what: "makes what its rules say, and cleans up by them",
        done: "rules() { printf \"$1\\n\" > rules.conf; systemd-tmpfiles $2 \"$PWD/rules.conf\"; rm rules.conf; }; \
               rules \"d $PWD/run 0750\\nf $PWD/run/f 0640 - - - content\\nL $PWD/link - - - - run/f\" --create; \
               cat link; cp -a run kept; rules \"R $PWD/run\" --remove; ls -A",
        look: TREE,
    },
    Case {
        program: "less",
        needs: &["less"],
        what: "shows what the other host wrote",
        done: "seq 100 > f; less f | tail -n 1",
        look: "less f | md5sum",
    },
    Case {
        program: "renameat2, RENAME_EXCHANGE",
        needs: &["python3"],
        what: "two files, and a file and a directory, swap their names in one step",
        done: "echo a > a; echo b > b; mkdir d; echo in > d/in; python3 -c '\n\
import ctypes, os\n\
c = ctypes.CDLL(None, use_errno=True)\n\
for x, y in [(b\"a\", b\"b\"), (b\"a\", b\"d\")]: \
assert c.renameat2(-100, x, -100, y, 2) == 0, os.strerror(ctypes.get_errno())\n\
'; cat b d a/in",
        look: TREE,
    },
    Case {
        program: "ln",
        needs: &[],
        what: "a hard link, which is refused: a key has one name",
        done: "echo x > f; ln f g; cat g",
        look: "ls -A",
    },
    Case {
        program: "mkfifo",
        needs: &[],
        what: "a fifo, which two processes of this host use; the other host sees that it is one",
        done: "mkfifo -m 640 p; cat p > got & echo through > p; wait $!; cat got",
        look: TREE,
    },
    Case {
        program: "mmap",
        needs: &["python3"],
        what: "a shared mapping for writing (Linux 6.6 or later)",
        done: "python3 -c '\n\
import mmap\n\
f = open(\"f\", \"w+b\"); f.write(b\"x\" * 4096); f.flush()\n\
with mmap.mmap(f.fileno(), 4096) as m: m[0:1] = b\"y\"\n\
'; head -c 2 f",
        look: "head -c 2 f",
    },
    Case {
        program: "sqlite3, write-ahead log",
        needs: &["sqlite3"],
        what: "journal_mode=wal, written by one host and then read by the other; not by two at once: its index is memory of one host",
        done: "sqlite3 db 'pragma journal_mode=wal; create table t(x); insert into t values(1); select * from t'",
        look: "sqlite3 db 'select * from t'",
    },
];
