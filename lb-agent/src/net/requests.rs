//! The netlink socket for requests.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Context, Result};
use rtnetlink::Handle;
use tokio::sync::{Mutex, MutexGuard};

/// A handle on the socket, shared by its clones.
#[derive(Clone)]
pub struct Requests {
    handle: Handle,
    listing: Arc<Mutex<()>>,
}

impl Requests {
    /// Opens the socket in the calling thread's network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// A socket that cannot be opened.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open a netlink socket for requests")?;
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    /// To be held while a list is read: the kernel gives out one list at a time per socket and refuses others with
    /// EBUSY (Linux 6.18, `__netlink_dump_start`). Requests that ask for no list need not wait.
    pub async fn turn_to_list(&self) -> MutexGuard<'_, ()> {
        self.listing.lock().await
    }
}

impl Deref for Requests {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}
