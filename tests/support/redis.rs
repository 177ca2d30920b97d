//! A Redis server of the test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{output, until};

/// A Redis server, at a socket in a folder of its own.
pub struct Redis {
    child: Option<Child>,
    pub folder: tempfile::TempDir,
    args: Vec<String>,
}

impl Redis {
    /// Starts a server.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// Starts a server with more arguments.
    pub fn start_with(args: &[&str]) -> Redis {
        let folder = tempfile::tempdir().unwrap();
        let args = args.iter().map(ToString::to_string).collect();
        let mut redis = Redis { child: None, folder, args };
        redis.revive();
        redis
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server again, at the same place and with nothing stored.
    pub fn revive(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(self.socket());
        command.arg("--dir").arg(self.folder.path()).args(&self.args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        self.child = Some(child.expect("redis-server is installed by tests/run"));
        until("the server answers", || self.ask(&["ping"]).contains("PONG") || self.ask(&["ping"]).contains("NOAUTH"));
    }

    /// Returns the server's answer to a command.
    pub fn ask(&self, command: &[&str]) -> String {
        output(Command::new("redis-cli").arg("-s").arg(self.socket()).args(command)).trim().into()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        url_of(&self.socket())
    }
}

/// Returns the URL of a server at a socket.
pub fn url_of(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
