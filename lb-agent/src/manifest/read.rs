//! The one place where manifests are fetched: from a file, from a directory, or from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{SIZE_MAX, Source};

/// A manifest that could not be fetched, and why.
#[derive(Debug, thiserror::Error)]
#[error("read {}: {source}", path.display())]
pub struct ReadError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Reads `path`: a file; a directory, meaning its files `*.yaml` and `*.yml` in the order of their names (not
/// those whose name begins with a dot, and not those of directories inside); or `-`, standard input. Files are
/// named in diagnostics as `path` names them.
///
/// # Errors
/// When something cannot be read, is not UTF-8 or is larger than [`SIZE_MAX`].
pub fn read_path(path: &Path) -> Result<Vec<Source>, ReadError> {
    if path == Path::new("-") {
        return Ok(vec![read("<stdin>".as_ref(), io::stdin().lock())?]);
    }
    let failed = |source| ReadError { path: path.to_owned(), source };
    if !path.metadata().map_err(failed)?.is_dir() {
        return Ok(vec![read(path, File::open(path).map_err(failed)?)?]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    let open = |file: &PathBuf| File::open(file).map_err(|source| ReadError { path: file.clone(), source });
    files.iter().map(|file| read(file, open(file)?)).collect()
}

/// Reads one file, whatever it is called.
///
/// # Errors
/// As [`read_path`].
pub fn read_file(path: &Path) -> Result<Source, ReadError> {
    let failed = |source| ReadError { path: path.to_owned(), source };
    read(path, File::open(path).map_err(failed)?)
}

fn read(name: &Path, reader: impl Read) -> Result<Source, ReadError> {
    let failed = |source| ReadError { path: name.to_owned(), source };
    let mut text = String::new();
    reader.take(SIZE_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() > SIZE_MAX {
        let limit = format!("larger than {} MiB", SIZE_MAX >> 20);
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, limit)));
    }
    Ok(Source { file: name.display().to_string(), text })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_means_its_yaml_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "c.yaml~", "notes.txt"] {
            fs::write(dir.path().join(name), format!("# {name}")).unwrap();
        }
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        let texts: Vec<String> = read_path(dir.path()).unwrap().into_iter().map(|s| s.text).collect();
        assert_eq!(texts, ["# a.yml", "# b.yaml"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.yaml");
        let error = read_path(&missing).unwrap_err().to_string();
        assert!(error.contains("missing.yaml: No such file"), "{error}");

        let binary = dir.path().join("binary.yaml");
        fs::write(&binary, [0xff, 0xfe]).unwrap();
        let error = read_path(&binary).unwrap_err().to_string();
        assert!(error.contains("UTF-8"), "{error}");

        let large = dir.path().join("large.yaml");
        fs::write(&large, vec![b'#'; SIZE_MAX + 1]).unwrap();
        let error = read_path(&large).unwrap_err().to_string();
        assert!(error.contains("larger than 16 MiB"), "{error}");
    }
}
