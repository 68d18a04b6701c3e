//! Tables that are reached by system call, behind one small trait, so that what fills them is tested without
//! a kernel.

use super::Error;
use aya::{
    Pod,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
};
use std::{collections, hash::Hash, os::fd::AsFd as _};

/// A table of values by key.
pub trait Store<K, V>: Send {
    /// The value under a key.
    fn get(&self, key: &K) -> Result<Option<V>, Error>;
    /// Puts a value under a key, in place of the one that is there.
    fn insert(&mut self, key: K, value: V) -> Result<(), Error>;
    /// Takes a key away; one that is not there is no error.
    fn remove(&mut self, key: &K) -> Result<(), Error>;
    /// All of them.
    fn entries(&self) -> Result<Vec<(K, V)>, Error>;
}

/// A boxed table.
pub type BoxStore<K, V> = Box<dyn Store<K, V>>;

/// Tables of the process's own memory.
#[derive(Default)]
pub struct Memory<K, V>(pub collections::HashMap<K, V>);

impl<K: Copy + Eq + Hash + Send, V: Clone + Send> Store<K, V> for Memory<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        Ok(self.0.get(key).cloned())
    }

    fn insert(&mut self, key: K, value: V) -> Result<(), Error> {
        self.0.insert(key, value);
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), Error> {
        self.0.remove(key);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        Ok(self.0.iter().map(|(key, value)| (*key, value.clone())).collect())
    }
}

/// A second handle of a map. The kernel's map is the same one.
pub fn again(name: &'static str, map: &Map) -> Result<Map, Error> {
    let data = data_of(map).ok_or(Error::Missing(name))?;
    let fd =
        data.fd().as_fd().try_clone_to_owned().map_err(Error::os(format!("open the table {name} again")))?;
    MapData::from_fd(fd).and_then(Map::from_map_data).map_err(Error::map(name))
}

/// The descriptor behind a map of a kind that the data plane has.
pub fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::DevMapHash(data)
        | Map::ProgramArray(data) => Some(data),
        _ => None,
    }
}

/// A map of the kernel with its name, for errors.
pub struct Kernel<M> {
    name: &'static str,
    map: M,
}

impl<M: TryFrom<Map, Error = MapError>> Kernel<M> {
    /// Takes a handle of its own on `map`.
    pub fn of(name: &'static str, map: &Map) -> Result<Self, Error> {
        Ok(Self { name, map: M::try_from(again(name, map)?).map_err(Error::map(name))? })
    }
}

fn found<V>(name: &'static str, value: Result<V, MapError>) -> Result<Option<V>, Error> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(source) => Err(Error::Map { name, reason: source }),
    }
}

fn absent_is_fine(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => found(name, other).map(drop),
    }
}

impl<K: Pod + Send, V: Pod + Send> Store<K, V> for Kernel<HashMap<MapData, K, V>> {
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        found(self.name, self.map.get(key, 0))
    }

    fn insert(&mut self, key: K, value: V) -> Result<(), Error> {
        self.map.insert(key, value, 0).map_err(Error::map(self.name))
    }

    fn remove(&mut self, key: &K) -> Result<(), Error> {
        absent_is_fine(self.name, self.map.remove(key))
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        self.map.iter().collect::<Result<_, _>>().map_err(Error::map(self.name))
    }
}

impl<V: Pod + Send> Store<u32, V> for Kernel<Array<MapData, V>> {
    fn get(&self, key: &u32) -> Result<Option<V>, Error> {
        found(self.name, self.map.get(key, 0))
    }

    fn insert(&mut self, key: u32, value: V) -> Result<(), Error> {
        self.map.set(key, value, 0).map_err(Error::map(self.name))
    }

    fn remove(&mut self, _: &u32) -> Result<(), Error> {
        Err(Error::Refused(format!("table {}: an array's elements cannot be removed", self.name)))
    }

    fn entries(&self) -> Result<Vec<(u32, V)>, Error> {
        (0..)
            .zip(self.map.iter())
            .map(|(i, value)| value.map(|v| (i, v)))
            .collect::<Result<_, _>>()
            .map_err(Error::map(self.name))
    }
}

impl<V: Pod + Send> Store<u32, Vec<V>> for Kernel<PerCpuArray<MapData, V>> {
    fn get(&self, key: &u32) -> Result<Option<Vec<V>>, Error> {
        Ok(found(self.name, self.map.get(key, 0))?.map(|values| values.to_vec()))
    }

    fn insert(&mut self, key: u32, value: Vec<V>) -> Result<(), Error> {
        let values = PerCpuValues::try_from(value).map_err(Error::os("count the CPUs"))?;
        self.map.set(key, values, 0).map_err(Error::map(self.name))
    }

    fn remove(&mut self, _: &u32) -> Result<(), Error> {
        Err(Error::Refused(format!("table {}: an array's elements cannot be removed", self.name)))
    }

    fn entries(&self) -> Result<Vec<(u32, Vec<V>)>, Error> {
        (0..)
            .zip(self.map.iter())
            .map(|(i, value)| value.map(|v| (i, v.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(Error::map(self.name))
    }
}

/// Keys of a prefix table: (length, address bytes in network order).
impl<K: Pod + Send, V: Pod + Send> Store<(u32, K), V> for Kernel<LpmTrie<MapData, K, V>> {
    fn get(&self, key: &(u32, K)) -> Result<Option<V>, Error> {
        found(self.name, self.map.get(&Key::new(key.0, key.1), 0))
    }

    fn insert(&mut self, key: (u32, K), value: V) -> Result<(), Error> {
        self.map.insert(&Key::new(key.0, key.1), value, 0).map_err(Error::map(self.name))
    }

    fn remove(&mut self, key: &(u32, K)) -> Result<(), Error> {
        absent_is_fine(self.name, self.map.remove(&Key::new(key.0, key.1)))
    }

    fn entries(&self) -> Result<Vec<((u32, K), V)>, Error> {
        self.map
            .iter()
            .map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)))
            .collect::<Result<_, _>>()
            .map_err(Error::map(self.name))
    }
}
