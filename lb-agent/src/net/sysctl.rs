//! Kernel settings by path below /proc/sys ("net/ipv4/conf/eth0/rp_filter"). Paths, not dotted names: interface
//! names may have dots. /proc/sys/net shows the network namespace of the calling thread.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Reads a setting, without the newline at its end.
///
/// # Errors
/// A path that leaves /proc/sys; a setting that does not exist or may not be read.
pub fn read(path: &str) -> Result<String> {
    let file = file(path)?;
    let value = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(value.trim_end().to_owned())
}

/// Writes a setting and returns whether that changed it.
///
/// # Errors
/// As [`read`]; the kernel's refusal of the value.
pub fn write(path: &str, value: &str) -> Result<bool> {
    if read(path)? == value {
        return Ok(false);
    }
    let file = file(path)?;
    fs::write(&file, value).with_context(|| format!("write {value} to {}", file.display()))?;
    Ok(true)
}

fn file(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    if !path.components().all(|component| matches!(component, Component::Normal(_))) {
        bail!("{} is not the path of a kernel setting", path.display());
    }
    Ok(Path::new("/proc/sys").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_without_its_newline() {
        let release = read("kernel/osrelease").unwrap();
        assert!(!release.is_empty() && !release.ends_with('\n'), "{release:?}");
    }

    #[test]
    fn a_path_stays_below_proc_sys() {
        for path in ["../../etc/passwd", "/etc/passwd", "net/../../../etc/passwd"] {
            assert!(read(path).unwrap_err().to_string().contains("not the path of a kernel setting"));
        }
        assert!(read("net/ipv4/conf/no.such.interface/rp_filter").is_err());
    }
}
