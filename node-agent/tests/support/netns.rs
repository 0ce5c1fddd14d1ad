//! Network namespaces of one test, gone when the value is.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
};

/// Namespaces whose names begin with `prefix`.
pub struct Namespaces {
    prefix: String,
    names: Vec<String>,
}

impl Namespaces {
    /// Makes them, or says why that can't be.
    pub fn new(prefix: &str, names: &[&str]) -> Result<Self, String> {
        let mut made = Self { prefix: format!("{prefix}{}", std::process::id()), names: Vec::new() };
        for name in names {
            let full = made.full(name);
            run("ip", &["netns", "add", &full])?;
            made.names.push(full);
            made.ip(name, "link set lo up")?;
        }
        Ok(made)
    }

    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Runs `ip` inside.
    pub fn ip(&self, name: &str, args: &str) -> Result<String, String> {
        let full = self.full(name);
        let args: Vec<&str> = ["-n", &full].into_iter().chain(args.split(' ')).collect();
        run("ip", &args)
    }

    /// Runs a program inside to its end.
    pub fn exec(&self, name: &str, program: &str, args: &[&str]) -> Result<String, String> {
        let full = self.full(name);
        run("ip", &[&["netns", "exec", &full, program], args].concat())
    }

    /// Starts a program inside.
    pub fn spawn(&self, name: &str, program: &str, args: &[&str], log: File) -> io::Result<Child> {
        let full = self.full(name);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &full, program]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

/// Puts the calling thread into the namespace.
pub fn enter(full: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{full}"))?;
    // SAFETY: the descriptor is open for the whole call, and setns changes only the calling thread.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// Runs a function in a namespace; the sockets it makes stay there.
pub fn inside<T: Send + 'static>(namespace: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.to_owned();
    let thread = std::thread::spawn(move || {
        enter(&namespace).unwrap();
        f()
    });
    thread.join().unwrap()
}
