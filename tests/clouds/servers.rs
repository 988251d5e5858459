//! Clouds on loopback, for the tests of several suites: servers that others wrote, where there are any, and a stub.

#![allow(dead_code, reason = "each suite uses its part")]

pub mod aws;
pub mod gcp;
pub mod http;
