//! Prints the CustomResourceDefinitions: `warren-crds DIR` writes one file a kind, `warren-crds --check DIR` fails when a
//! file there is not what the types say.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--check", dir] => check(Path::new(dir)),
        [dir] if !dir.starts_with('-') => write(Path::new(dir)),
        _ => Err("usage: warren-crds [--check] DIR".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-crds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
    for file in crds::crd_files().map_err(|e| e.to_string())? {
        let path = dir.join(file.name);
        fs::write(&path, file.text).map_err(|e| format!("write {}: {e}", path.display()))?;
    }
    Ok(())
}

fn check(dir: &Path) -> Result<(), String> {
    for file in crds::crd_files().map_err(|e| e.to_string())? {
        let path = dir.join(file.name);
        let found = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
        if found != file.text {
            return Err(format!("{} is not what the types say: run `make generate` and commit it", path.display()));
        }
    }
    Ok(())
}
