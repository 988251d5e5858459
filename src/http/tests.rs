use super::*;
use std::io::{Read, Write};
use std::net::TcpStream;

fn routes() -> Arc<Routes> {
    Arc::new(|path| (path == "/there").then(|| Answer::ok("text/plain", "here")))
}

fn ask(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn only_reading_is_answered_and_only_to_who_knows_that_it_asks_this_machine() {
    let server = Server::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Loopback(address) = server.address().clone() else { unreachable!() };
    server.spawn(routes()).unwrap();
    let ask = |request: &str| ask(TcpStream::connect(address).unwrap(), request);
    let good = ask("GET /there HTTP/1.1\r\nHost: localhost");
    assert!(good.starts_with("HTTP/1.1 200 ") && good.ends_with("\r\n\r\nhere"), "{good}");
    assert!(good.contains("content-security-policy: default-src 'none'") && good.contains("nosniff"), "{good}");
    let head = ask("HEAD /there HTTP/1.1\r\nHost: [::1]:80");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(ask("GET /elsewhere HTTP/1.1\r\nHost: 127.0.0.1").starts_with("HTTP/1.1 404 "));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = ask(&format!("{method} /there HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0"));
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD"), "{method}: {refused}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
        let refused = ask(&format!("GET /there HTTP/1.1\r\nHost: {host}"));
        assert!(refused.starts_with("HTTP/1.1 421 ") && !refused.contains("here\r"), "{host}: {refused}");
    }
    assert!(ask("GET /there HTTP/1.0").starts_with("HTTP/1.0 421 "), "without a Host header");
}

#[test]
fn a_socket_is_for_its_user_and_replaces_only_a_dead_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address = Address::Unix(path.clone());
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::bind(&address).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    server.spawn(routes()).unwrap();
    assert!(ask(UnixStream::connect(&path).unwrap(), "GET /there HTTP/1.1\r\nHost: any").ends_with("here"));
    assert_eq!(Server::bind(&address).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    let file = directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert_eq!(Server::bind(&Address::Unix(file.clone())).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}
