//! Asking daemons what they work with.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

/// An answer that takes longer is none; the caller asks again.
const ANSWER: Duration = Duration::from_secs(5);

/// What a web server on this host answers.
pub fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_string())
}

/// Whether a name server on this host knows an address of that name (RFC 1035, sections 4.1 and 3.2).
pub fn resolves(port: u16, name: &str) -> Option<bool> {
    const RECURSION_DESIRED: [u8; 2] = [1, 0];
    const ADDRESS_IN_INTERNET: [u8; 4] = [0, 1, 0, 1];
    let id = [0x71, 0x66];
    let mut question = [&id[..], &RECURSION_DESIRED, &[0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).ok()?);
        question.extend_from_slice(label.as_bytes());
    }
    question.push(0);
    question.extend_from_slice(&ADDRESS_IN_INTERNET);
    let socket = UdpSocket::bind(("127.0.0.1", 0)).ok()?;
    socket.set_read_timeout(Some(ANSWER)).ok()?;
    socket.send_to(&question, ("127.0.0.1", port)).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    let answers = answer.get(6..8).filter(|_| length >= 8 && answer[..2] == id)?;
    Some(answers != [0, 0])
}
