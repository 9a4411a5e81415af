//! An address that answers no connection.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A listener whose queue is full: the kernel answers no further connection.
pub struct Blackhole {
    address: SocketAddr,
    _held: Vec<Socket>,
}

impl Blackhole {
    /// A new one.
    pub fn new() -> Self {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            // Under way is all that it can be.
            let _ = client.connect(&address.into());
            held.push(client);
        }
        Self { address, _held: held }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
