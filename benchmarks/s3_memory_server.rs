//! An S3 server that keeps its objects in memory, so that a benchmark measures the program that transfers and not the store.
//!
//!     rustc -O s3_memory_server.rs && ./s3_memory_server [PORT]
//!
//! It listens on 127.0.0.1 only, on a free port if none is given, and prints its address. Every bucket exists as soon as it
//! is used. It knows put, get (with a range), head, delete, multipart uploads and listing, path-style, and remembers the
//! SHA-256 that a client states.
//!
//! It is no store for anything else: no signature and no checksum is checked, ETags are serial numbers rather than MD5, every
//! object has the same date, If-Match and metadata are ignored, and what it does not know is answered with 501 NotImplemented.
//! A thread serves each connection, and a client that speaks bad HTTP loses its connection.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};

type Map<V> = BTreeMap<String, V>;
type Answer = Result<Response, Error>;

/// HTTP status, S3 code.
struct Error(u16, &'static str);

const MIB: usize = 1 << 20;
const NO_SUCH_KEY: Error = Error(404, "NoSuchKey");
const NO_SUCH_UPLOAD: Error = Error(404, "NoSuchUpload");
const TAKEN: Error = Error(412, "PreconditionFailed");
/// Parameters of a query that are understood or do not matter; with another one a request means something else.
const PARAMETERS: &str = "continuation-token delete delimiter encoding-type fetch-owner list-type location \
                          marker max-keys partNumber prefix start-after uploadId uploads x-id";

static STATE: Mutex<State> = Mutex::new(State { buckets: Map::new(), uploads: Map::new(), serial: 0 });
/// Large buffers of objects that are gone. Fresh memory costs the kernel as much time as the transfer itself.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

struct State {
    buckets: Map<Map<Arc<Object>>>,
    uploads: Map<BTreeMap<u32, Part>>,
    serial: u64,
}

impl State {
    fn serial(&mut self) -> String {
        self.serial += 1;
        format!("{:016x}", self.serial)
    }

    fn find(&self, request: &Request) -> Option<&Arc<Object>> {
        self.buckets.get(&request.bucket)?.get(&request.key)
    }

    fn delete(&mut self, request: &Request, key: &str) {
        self.buckets.get_mut(&request.bucket).and_then(|bucket| bucket.remove(key));
    }

    /// Put an object in its place, unless the request says that there must be none.
    fn store(&mut self, request: &Request, parts: Vec<Arc<Buffer>>, etag: String, sha256: Option<String>) -> Result<(), Error> {
        if request.header("if-none-match") == Some("*") && self.find(request).is_some() {
            return Err(TAKEN);
        }
        let object = Object { size: parts.iter().map(|part| part.0.len()).sum(), parts, etag, sha256 };
        self.buckets.entry(request.bucket.clone()).or_default().insert(request.key.clone(), Arc::new(object));
        Ok(())
    }
}

struct Object {
    parts: Vec<Arc<Buffer>>,
    size: usize,
    etag: String,
    /// As S3 gives it: Base64, and for an upload in parts the digest of their digests with their number behind it.
    sha256: Option<String>,
}

struct Part {
    data: Arc<Buffer>,
    etag: String,
    sha256: Option<String>,
}

/// The bytes of a part, which go to the spare ones in the end.
struct Buffer(Vec<u8>);

impl Buffer {
    /// Return that many bytes, whatever they are.
    fn new(size: usize) -> Vec<u8> {
        if size >= MIB {
            let mut spare = SPARE.lock().unwrap();
            if let Some(index) = spare.iter().position(|buffer| buffer.len() == size) {
                return spare.swap_remove(index);
            }
        }
        vec![0; size]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() >= MIB {
            SPARE.lock().unwrap().push(std::mem::take(&mut self.0));
        }
    }
}

#[derive(Default)]
struct Request {
    method: String,
    bucket: String,
    key: String,
    query: Map<String>,
    /// Names in small letters.
    headers: Map<String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn has(&self, name: &str) -> bool {
        self.query.contains_key(name)
    }
}

struct Response {
    status: u16,
    /// Whole lines.
    headers: String,
    text: String,
    /// Sent instead of the text: these bytes of an object.
    object: Option<(Arc<Object>, Range<usize>)>,
}

impl Response {
    fn new(status: u16) -> Self {
        Response { status, headers: String::new(), text: String::new(), object: None }
    }

    fn xml(root: &str, content: &str) -> Self {
        let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root}>{content}</{root}>");
        Response { text, ..Response::new(200).with("Content-Type", "application/xml") }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// Say the digests that the request stated, as S3 does once it has checked them.
    fn with_digests_of(self, request: &Request) -> Self {
        let stated = request.headers.iter().filter(|(name, _)| name.starts_with("x-amz-checksum-"));
        stated.fold(self, |response, (name, value)| response.with(name, value))
    }
}

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).map_or(0, |text| text.parse().expect("PORT is a number"));
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("http://{}", listener.local_addr()?);
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream)); // an error is the client's business: it has lost its connection
    }
    Ok(())
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::with_capacity(64 * 1024, stream);
    while let Some(request) = read_head(&mut input)? {
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut input, &request)?;
        let response = answer(&request, body).unwrap_or_else(|Error(status, code)| Response {
            status,
            ..Response::xml("Error", &format!("<Code>{code}</Code><Message>{code}</Message>"))
        });
        send(&mut output, &response, request.method == "HEAD")?;
        if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            break;
        }
    }
    Ok(())
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Read a line without its end; None where the input ends.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    let size = input.by_ref().take(64 * 1024).read_line(&mut line)?;
    Ok((size > 0).then(|| line.trim_end().to_owned()))
}

/// Read the request line and the headers; None if the client has nothing more to ask.
fn read_head(input: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(line) = read_line(input)? else { return Ok(None) };
    let mut words = line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(bad("request line")) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.strip_prefix('/').ok_or_else(|| bad("path"))?;
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let mut request = Request { method: method.into(), bucket: decoded(bucket)?, key: decoded(key)?, ..Default::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        request.query.insert(decoded(name)?, decoded(&value.replace('+', " "))?);
    }
    loop {
        let line = read_line(input)?.ok_or_else(|| bad("headers"))?;
        if line.is_empty() {
            return Ok(Some(request));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("header"))?;
        request.headers.insert(name.to_ascii_lowercase(), value.trim().into());
    }
}

/// Read the body: first as HTTP frames it, then as S3 does if it is sent in S3's own chunks.
fn read_body(input: &mut impl BufRead, request: &Request) -> io::Result<Vec<u8>> {
    let in_chunks = request.header("content-encoding").is_some_and(|value| value.contains("aws-chunked"))
        || request.header("x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-"));
    let decoded_size = || request.header("x-amz-decoded-content-length").and_then(|size| size.parse().ok()).unwrap_or(0);
    if request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        let body = read_chunks(input, 0)?;
        return if in_chunks { read_chunks(&mut body.as_slice(), decoded_size()) } else { Ok(body) };
    }
    let size = request.header("content-length").unwrap_or("0").parse().map_err(|_| bad("length"))?;
    if in_chunks {
        let mut framed = input.take(size as u64);
        let body = read_chunks(&mut framed, decoded_size())?;
        io::copy(&mut framed, &mut io::sink())?;
        return Ok(body);
    }
    let mut body = Buffer::new(size);
    input.read_exact(&mut body)?;
    Ok(body)
}

/// Read chunks, each after a line with its size, and the trailer behind the last. HTTP and aws-chunked have the same form;
/// signatures behind a semicolon and trailers are skipped.
fn read_chunks(input: &mut impl BufRead, expected: usize) -> io::Result<Vec<u8>> {
    let mut body = Buffer::new(expected);
    let mut filled = 0;
    loop {
        let line = read_line(input)?.ok_or_else(|| bad("chunk"))?;
        let size =
            line.split(';').next().and_then(|size| usize::from_str_radix(size, 16).ok()).ok_or_else(|| bad("chunk size"))?;
        if size == 0 {
            while read_line(input)?.is_some_and(|line| !line.is_empty()) {}
            body.truncate(filled);
            return Ok(body);
        }
        body.resize(body.len().max(filled + size), 0);
        input.read_exact(&mut body[filled..filled + size])?;
        filled += size;
        read_line(input)?;
    }
}

fn send(output: &mut TcpStream, response: &Response, head_only: bool) -> io::Result<()> {
    let size = response.object.as_ref().map_or(response.text.len(), |(_, range)| range.len());
    let headers = &response.headers;
    let head = format!("HTTP/1.1 {} -\r\nContent-Length: {size}\r\n{headers}\r\n", response.status);
    match &response.object {
        _ if head_only => output.write_all(head.as_bytes()),
        None => output.write_all((head + &response.text).as_bytes()),
        Some((object, range)) => {
            let (mut before, mut head) = (0, head.as_bytes());
            for part in &object.parts {
                let (start, end) = (range.start.max(before), range.end.min(before + part.0.len()));
                if start < end {
                    let mut rest = &part.0[start - before..end - before];
                    while !head.is_empty() {
                        // together with the first bytes, which spares a packet
                        let sent = output.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)])?;
                        rest = &rest[sent.saturating_sub(head.len())..];
                        head = &head[sent.min(head.len())..];
                    }
                    output.write_all(rest)?;
                }
                before += part.0.len();
            }
            output.write_all(head) // of an empty object
        }
    }
}

fn answer(request: &Request, body: Vec<u8>) -> Answer {
    if request.query.keys().any(|name| !PARAMETERS.split(' ').any(|known| known == name))
        || request.header("x-amz-copy-source").is_some()
        || request.bucket.is_empty()
    {
        return Err(Error(501, "NotImplemented"));
    }
    match (request.method.as_str(), request.key.is_empty()) {
        ("PUT", true) => Ok(Response::new(200)),
        ("HEAD", true) => Ok(Response::new(200).with("x-amz-bucket-region", "us-east-1")),
        ("GET", true) if request.has("location") => Ok(Response::xml("LocationConstraint", "")),
        ("GET", true) => Ok(list(request)),
        ("POST", true) if request.has("delete") => Ok(delete_many(request, &text(body))),
        ("PUT", false) if request.has("uploadId") => put_part(request, body),
        ("PUT", false) => put(request, body),
        ("GET", false) if request.has("uploadId") => list_parts(request),
        ("GET" | "HEAD", false) => get(request),
        ("DELETE", false) if request.has("uploadId") => abort(request),
        ("DELETE", false) => {
            STATE.lock().unwrap().delete(request, &request.key);
            Ok(Response::new(204))
        }
        ("POST", false) if request.has("uploads") => begin(request),
        ("POST", false) if request.has("uploadId") => complete(request, &text(body)),
        _ => Err(Error(501, "NotImplemented")),
    }
}

fn text(body: Vec<u8>) -> String {
    String::from_utf8_lossy(&body).into_owned()
}

fn put(request: &Request, body: Vec<u8>) -> Answer {
    let mut state = STATE.lock().unwrap();
    let etag = format!("\"{}\"", state.serial());
    let sha256 = request.header("x-amz-checksum-sha256").map(str::to_owned);
    state.store(request, vec![Arc::new(Buffer(body))], etag.clone(), sha256)?;
    Ok(Response::new(200).with("ETag", &etag).with_digests_of(request))
}

fn get(request: &Request) -> Answer {
    let object = STATE.lock().unwrap().find(request).cloned().ok_or(NO_SUCH_KEY)?;
    let size = object.size;
    let range = match request.header("range") {
        None => None,
        Some(header) => Some(range(header, size).ok_or(Error(416, "InvalidRange"))?),
    };
    let mut response = Response::new(if range.is_some() { 206 } else { 200 })
        .with("ETag", &object.etag)
        .with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        .with("Accept-Ranges", "bytes")
        .with("Content-Type", "application/octet-stream");
    if let Some(range) = &range {
        response = response.with("Content-Range", &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    } else if let (Some(sha256), Some(_)) = (&object.sha256, request.header("x-amz-checksum-mode")) {
        response = response.with("x-amz-checksum-sha256", sha256);
    }
    response.object = Some((object, range.unwrap_or(0..size)));
    Ok(response)
}

/// Return what a Range header means for an object of `size` bytes; None if that is nothing.
fn range(header: &str, size: usize) -> Option<Range<usize>> {
    let range = match header.strip_prefix("bytes=")?.split_once('-')? {
        ("", last) => size.saturating_sub(last.parse().ok()?)..size,
        (first, "") => first.parse().ok()?..size,
        (first, last) => first.parse().ok()?..last.parse::<usize>().ok()?.saturating_add(1).min(size),
    };
    (!range.is_empty()).then_some(range)
}

fn begin(request: &Request) -> Answer {
    let mut state = STATE.lock().unwrap();
    let id = state.serial();
    state.uploads.insert(id.clone(), BTreeMap::new());
    let (bucket, key) = (escaped(&request.bucket), escaped(&request.key));
    let content = format!("<Bucket>{bucket}</Bucket><Key>{key}</Key><UploadId>{id}</UploadId>");
    Ok(Response::xml("InitiateMultipartUploadResult", &content))
}

fn put_part(request: &Request, body: Vec<u8>) -> Answer {
    let number = request.parameter("partNumber").parse().map_err(|_| Error(400, "InvalidArgument"))?;
    let mut state = STATE.lock().unwrap();
    let etag = format!("\"{}\"", state.serial());
    let sha256 = request.header("x-amz-checksum-sha256").map(str::to_owned);
    let part = Part { data: Arc::new(Buffer(body)), etag: etag.clone(), sha256 };
    state.uploads.get_mut(request.parameter("uploadId")).ok_or(NO_SUCH_UPLOAD)?.insert(number, part);
    Ok(Response::new(200).with("ETag", &etag).with_digests_of(request))
}

/// List the parts of an upload, all on one page.
fn list_parts(request: &Request) -> Answer {
    let state = STATE.lock().unwrap();
    let (bucket, key, id) = (escaped(&request.bucket), escaped(&request.key), request.parameter("uploadId"));
    let mut content = format!("<Bucket>{bucket}</Bucket><Key>{key}</Key><UploadId>{id}</UploadId>");
    content += "<IsTruncated>false</IsTruncated>";
    for (number, part) in state.uploads.get(id).ok_or(NO_SUCH_UPLOAD)? {
        let (etag, size) = (escaped(&part.etag), part.data.0.len());
        let sha256 = part.sha256.as_ref().map(|digest| format!("<ChecksumSHA256>{digest}</ChecksumSHA256>"));
        content += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag><Size>{size}</Size>");
        content += &format!("{}</Part>", sha256.unwrap_or_default());
    }
    Ok(Response::xml("ListPartsResult", &content))
}

fn complete(request: &Request, xml: &str) -> Answer {
    let id = request.parameter("uploadId");
    let mut state = STATE.lock().unwrap();
    let etag = state.serial();
    let upload = state.uploads.get(id).ok_or(NO_SUCH_UPLOAD)?;
    let numbers = elements(xml, "PartNumber").map(|number| number.parse().unwrap_or(0));
    let parts: Option<Vec<&Part>> = numbers.map(|number| upload.get(&number)).collect();
    let parts = parts.filter(|parts| !parts.is_empty()).ok_or(Error(400, "InvalidPart"))?;
    let digests: Option<Vec<Vec<u8>>> = parts.iter().map(|part| from_base64(part.sha256.as_ref()?)).collect();
    let sha256 = digests.map(|digests| format!("{}-{}", to_base64(&sha256(&digests.concat())), parts.len()));
    let etag = format!("\"{etag}-{}\"", parts.len());
    let buffers = parts.iter().map(|part| part.data.clone()).collect();
    state.store(request, buffers, etag.clone(), sha256.clone())?;
    state.uploads.remove(id);
    let (bucket, key, etag) = (escaped(&request.bucket), escaped(&request.key), escaped(&etag));
    let sha256 = sha256.map(|digest| format!("<ChecksumSHA256>{digest}</ChecksumSHA256>")).unwrap_or_default();
    let content = format!("<Bucket>{bucket}</Bucket><Key>{key}</Key><ETag>{etag}</ETag>{sha256}");
    Ok(Response::xml("CompleteMultipartUploadResult", &content))
}

fn abort(request: &Request) -> Answer {
    let upload = STATE.lock().unwrap().uploads.remove(request.parameter("uploadId"));
    upload.map(|_| Response::new(204)).ok_or(NO_SUCH_UPLOAD)
}

fn delete_many(request: &Request, xml: &str) -> Response {
    let mut state = STATE.lock().unwrap();
    let mut content = String::new();
    for key in elements(xml, "Key") {
        state.delete(request, &unescaped(key));
        content += &format!("<Deleted><Key>{key}</Key></Deleted>");
    }
    Response::xml("DeleteResult", &content)
}

/// List the objects of a bucket, as version 2 and version 1 of the request want it.
fn list(request: &Request) -> Response {
    let named = |text: &str| if request.has("encoding-type") { encoded(text) } else { escaped(text) };
    let (prefix, delimiter) = (request.parameter("prefix"), request.parameter("delimiter"));
    let limit = request.parameter("max-keys").parse().map_or(1000, |keys: usize| keys.min(1000));
    let token = decoded(request.parameter("continuation-token")).unwrap_or_default();
    let after = token.as_str().max(request.parameter("start-after")).max(request.parameter("marker"));
    let (mut content, mut count, mut last, mut truncated) = (String::new(), 0, after, false);
    let state = STATE.lock().unwrap();
    let objects = state.buckets.get(&request.bucket).map(|bucket| bucket.range(prefix.max(after).to_owned()..));
    for (key, object) in objects.into_iter().flatten().take_while(|(key, _)| key.starts_with(prefix)) {
        let cut = key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty());
        let entry = cut.map_or(key.as_str(), |cut| &key[..prefix.len() + cut + delimiter.len()]);
        if key.as_str() <= after || entry == last {
            continue; // it was on the page before, or is a common prefix that was told already
        }
        if count == limit {
            truncated = limit > 0;
            break;
        }
        (count, last) = (count + 1, entry);
        let name = named(entry);
        content += &if cut.is_some() {
            format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>")
        } else {
            let (etag, size, date) = (escaped(&object.etag), object.size, "2026-01-01T00:00:00.000Z");
            let about = format!("<LastModified>{date}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>");
            format!("<Contents><Key>{name}</Key>{about}</Contents>")
        };
    }
    content += &format!("<Name>{}</Name><Prefix>{}</Prefix>", escaped(&request.bucket), named(prefix));
    content += &format!("<MaxKeys>{limit}</MaxKeys><KeyCount>{count}</KeyCount><IsTruncated>{truncated}</IsTruncated>");
    if request.has("encoding-type") {
        content += "<EncodingType>url</EncodingType>";
    }
    if truncated {
        content += &format!("<NextContinuationToken>{}</NextContinuationToken>", encoded(last));
        content += &format!("<NextMarker>{}</NextMarker>", named(last));
    }
    Response::xml("ListBucketResult", &content)
}

/// Undo %XX.
fn decoded(text: &str) -> io::Result<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or("").as_bytes().to_vec();
    for piece in pieces {
        let code = piece.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or_else(|| bad("escape"))?;
        bytes.push(code);
        bytes.extend(piece[2..].bytes());
    }
    String::from_utf8(bytes).map_err(|_| bad("UTF-8"))
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescaped(text: &str) -> String {
    let pairs =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Return what stands in the elements `name` of a document, in order.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let found: Vec<&str> = xml.split(&start).skip(1).filter_map(|rest| Some(rest.split_once(&end)?.0)).collect();
    found.into_iter()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(data: &[u8]) -> String {
    let mut text = String::new();
    for three in data.chunks(3) {
        let bits = three.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for index in 0..4 {
            let digit = BASE64[(bits >> (18 - 6 * index) & 63) as usize] as char;
            text.push(if index <= three.len() { digit } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut data, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | BASE64.iter().position(|&digit| digit == byte)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            data.push((bits >> count) as u8);
        }
    }
    Some(data)
}

/// SHA-256 (FIPS 180-4) of a short message: S3 tells the digest of the digests of an object's parts.
fn sha256(message: &[u8]) -> [u8; 32] {
    // The first bits of the fractional parts of the cube and square roots of the first primes.
    let primes: Vec<u32> = (2u32..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let constants: Vec<u32> = primes.iter().map(|&prime| fraction(prime, 3)).collect();
    let mut hash: Vec<u32> = primes[..8].iter().map(|&prime| fraction(prime, 2)).collect();
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut w: Vec<u32> = block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
        for t in 16..64 {
            let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
            let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
            w.push(w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1));
        }
        let mut v = hash.clone(); // a to h
        for t in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = v[4] & v[5] ^ !v[4] & v[6];
            let t1 = [s1, choice, constants[t], w[t]].iter().fold(v[7], |sum, &term| sum.wrapping_add(term));
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2];
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        hash.iter_mut().zip(v).for_each(|(word, add)| *word = word.wrapping_add(add));
    }
    hash.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>().try_into().unwrap()
}

/// Return the first 32 bits of the fractional part of the square or cube root of a number.
fn fraction(number: u32, degree: u32) -> u32 {
    // The largest r with r^degree <= number * 2^(32 * degree) is the root times 2^32; it is built bit by bit.
    let target = u128::from(number) << (32 * degree);
    let root =
        (0..36).rev().fold(0u128, |root, bit| if (root | 1 << bit).pow(degree) <= target { root | 1 << bit } else { root });
    root as u32
}
